"""Check an output folder before any work starts: what it holds, and whether it can be written."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from pipeline.errors import ConfigError, InputError
from pipeline.storage.listing import bucket_pages, children_of
from pipeline.storage.s3 import bucket_and_prefix, is_bucket
from pipeline.storage.store import Store, file_place, is_temporary, name_if_absent
from pipeline.storage.uris import (
    canonical_uri,
    check_credentials,
    filesystem,
    is_local,
    is_local_filesystem,
    refuse_secrets,
    storage_errors,
)

# Files that a mounted disk, a desktop or a file server creates by itself.
_LITTER = {".DS_Store", "Thumbs.db", "desktop.ini", "lost+found", ".snapshot"}
_LITTER_PREFIXES = (".nfs", ".Trash-")
PROBE_PREFIX = ".write-test-"  # name of the folder in which `check_output` tries to write
# So many names suffice to recognise a folder; a complete listing could have a billion.
_MAX_NAMES = 64
_MAX_SHOWN_NAMES = 3


@dataclass(frozen=True)
class OutputKind:
    """Kind of output that a job writes, and a function that recognises such a folder.

    `is_ours` is called with the folder and the first names in it, sorted, where folders end in a
    slash. It is not called for a folder without files.
    """

    what: str  # for messages: "a table of latents"
    is_ours: Callable[[Store, Sequence[str]], bool]


def check_contents(uri: str, kind: OutputKind) -> None:
    """Raise `ConfigError` if a folder holds files and is not an output of this `kind`.

    Costs one listing request of one level.
    """
    store = Store(uri)
    with storage_errors(f"list '{store.root}'"):
        names = first_names(store)
        if not names or kind.is_ours(store, names):
            return
    named = ", ".join(f"'{name}'" for name in names[:_MAX_SHOWN_NAMES])
    more = " and more" if len(names) > _MAX_SHOWN_NAMES else ""
    raise ConfigError(
        f"the output '{store.root}' holds {named}{more}, and is not {kind.what}: nothing is "
        f"written among other files; choose a folder that is new or empty, or {kind.what} to "
        "continue"
    )


def first_names(store: Store) -> list[str]:
    """Return the first names in a folder, sorted; names of folders end in a slash.

    Files that storage systems create by themselves and temporary files of killed writers are
    skipped. A missing folder has no names.
    """
    return sorted(islice(filter(_is_content, names_in(store)), _MAX_NAMES))


def names_in(store: Store) -> Iterator[str]:
    """Yield the names in the top folder of `store`, while listing; those of folders end in "/"."""
    fs, folder = store.fs, store.path()
    with suppress(FileNotFoundError):
        if is_local_filesystem(fs):
            with os.scandir(folder) as children:
                yield from (child.name + "/" * child.is_dir() for child in children)
        elif is_bucket(fs):
            for page in bucket_pages(fs, *bucket_and_prefix(fs, folder)):
                yield from (child.name for child in page)
        else:
            yield from (child.name for child in children_of(fs, folder))


def _is_content(name: str) -> bool:
    name = name.rstrip("/")
    litter = name in _LITTER or name.startswith(_LITTER_PREFIXES)
    return not litter and not is_temporary(name) and not name.startswith(PROBE_PREFIX)


# Errors that another attempt would meet again; a full disk is not among them.
_PERMANENT = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EINVAL),
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTSUP),
}


def check_output(uri: str, kind: OutputKind | None = None) -> None:
    """Raise `ConfigError` if the folder `uri` cannot be written to, or holds files not of `kind`.

    Raises `InputError` if `uri` contains a credential (`refuse_secrets`, `canonical_uri`), and
    `AccessError` if the credentials of S3 are missing, wrong or expired.

    On a disk it creates a hidden folder in the deepest existing parent, writes a file there as the
    table's files are written, and removes both: permissions alone say too little for /proc, or to
    root. On an object store it checks only that `uri` is not the name of an object.
    """
    root = canonical_uri(uri)
    refuse_secrets("the output's URI", root)
    fs, path = filesystem(root)
    if is_local_filesystem(fs):
        with storage_errors(f"write to '{root}'"):
            _check_disk(Path(root))
    elif "http" in fs.protocol:
        raise ConfigError(f"the output '{root}' cannot be written to: the web is read-only")
    else:
        check_credentials(root)  # `isfile` returns False for every error
        with storage_errors(f"look up '{root}'"):
            if fs.isfile(path):
                raise ConfigError(f"the output '{root}' is an object: choose the name of a folder")
    if kind:
        check_contents(root, kind)


def check_beside(
    source: str,
    output: str,
    *,
    what: str = "input",
    why: str = "where its files would be read as images",
) -> None:
    """Raise `InputError` for an output inside its own input: the next run would read it.

    On a disk links are followed: they may lead into the input, or from the input to the output.
    """
    outer, inner = canonical_uri(source), canonical_uri(output)
    if is_local(outer) and is_local(inner):
        inside = os.path.realpath(outer) in _folders_around(inner)
    else:
        inside = f"{inner}/".startswith(f"{outer}/")
    if inside:
        raise InputError(
            f"the output '{inner}' lies inside the {what} '{outer}', {why}: choose an output "
            "beside it"
        )


def check_outside(table: str, output: str, kind: OutputKind | None = None) -> None:
    """Raise a `RequestError` unless a job can write `output`, outside the table that it reads.

    `output` is a folder of this `kind`; without one it is a file, which may exist.
    """
    why = "where nothing may stand but what its jobs write"
    check_beside(table, output, what="table", why=why)
    if kind:
        check_output(output, kind)
        return
    store, name = file_place(output)
    check_output(store.root)
    if is_local(store.root) and Path(store.root, name).is_dir():
        raise ConfigError(f"the output '{store.uri(name)}' is a folder: name a file")


def _folders_around(path: str) -> set[str]:
    """Return the real paths of `path` and of its parents, as written and with links resolved."""
    paths = (Path(path), Path(os.path.realpath(path)))
    return {os.path.realpath(place) for path in paths for place in (path, *path.parents)}


def _check_disk(folder: Path) -> None:
    try:
        parent = next(above for above in (folder, *folder.parents) if os.path.lexists(above))
        if not parent.is_dir():
            raise ConfigError(f"the output '{folder}' cannot be a folder: '{parent}' is a file")
        with tempfile.TemporaryDirectory(prefix=PROBE_PREFIX, dir=parent) as probe:
            complete = Path(probe, "complete")
            complete.touch()
            name_if_absent(complete, complete.with_name("named"))
    except OSError as error:
        if error.errno not in _PERMANENT:
            raise
        why = os.strerror(error.errno or errno.EINVAL)
        raise ConfigError(f"the output '{folder}' cannot be written to: {why}") from error
