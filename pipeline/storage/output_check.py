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
from typing import Any

from pipeline.errors import ConfigError, InputError
from pipeline.storage.s3 import bucket_and_prefix, is_bucket, listing_pages
from pipeline.storage.store import Store, is_temporary, name_if_absent
from pipeline.storage.uris import (
    canonical_uri,
    check_credentials,
    filesystem,
    is_local,
    is_local_filesystem,
    refuse_secrets,
    storage_errors,
)

# What a mounted disk, a desktop or a file server puts into a folder by itself.
_LITTER = {".DS_Store", "Thumbs.db", "desktop.ini", "lost+found", ".snapshot"}
_LITTER_PREFIXES = (".nfs", ".Trash-")
PROBE_PREFIX = ".write-test-"  # of the folder in which `check_output` tries to write
# So many tell what a folder is for; a listing of all could be of a billion.
_LOOKED_AT = 64
_NAMED = 3


@dataclass(frozen=True)
class OutputKind:
    """What a job leaves in a folder, and how a folder that a run of the job has begun is told.

    `is_ours` gets the folder and the first names in it, sorted, those of folders with a slash
    behind them; it is not asked for a folder without files.
    """

    what: str  # for messages: "a table of latents"
    is_ours: Callable[[Store, Sequence[str]], bool]


def check_contents(uri: str, kind: OutputKind) -> None:
    """Raise `ConfigError` where a folder holds files, and is not one of `kind`.

    One listing request, of one level, of which the first names are read.
    """
    store = Store(uri)
    with storage_errors(f"list '{store.root}'"):
        names = first_names(store)
        if not names or kind.is_ours(store, names):
            return
    named = ", ".join(f"'{name}'" for name in names[:_NAMED])
    more = " and more" if len(names) > _NAMED else ""
    raise ConfigError(
        f"the output '{store.root}' holds {named}{more}, and is not {kind.what}: nothing is "
        f"written among other files; choose a folder that is new or empty, or {kind.what} to "
        "continue"
    )


def first_names(store: Store) -> list[str]:
    """The first names in a folder, sorted, those of folders with a slash behind them.

    What storage puts there by itself, and what a killed writer of ours leaves, is left out. A
    folder that is not there has none.
    """
    return sorted(islice(filter(_is_content, _names(store)), _LOOKED_AT))


def _names(store: Store) -> Iterator[str]:
    folder = store.path()
    if is_local_filesystem(store.fs):
        return _names_on_disk(folder)
    if is_bucket(store.fs):
        return _names_in_bucket(store.fs, folder)
    return _names_elsewhere(store.fs, folder)


def _names_on_disk(folder: str) -> Iterator[str]:
    with suppress(FileNotFoundError), os.scandir(folder) as children:
        for child in children:
            yield child.name + "/" * child.is_dir()


def _names_in_bucket(fs: Any, folder: str) -> Iterator[str]:
    bucket, prefix = bucket_and_prefix(fs, folder)
    with suppress(FileNotFoundError):  # no such bucket
        for page in listing_pages(fs, bucket, prefix, Delimiter="/"):
            keys = [item["Key"] for item in page.get("Contents", ())]
            keys += [item["Prefix"] for item in page.get("CommonPrefixes", ())]
            yield from (key[len(prefix) :] for key in keys)


def _names_elsewhere(fs: Any, folder: str) -> Iterator[str]:
    with suppress(FileNotFoundError):
        for item in fs.ls(folder, detail=True):
            name = str(item["name"]).rstrip("/").rsplit("/", 1)[-1]
            yield name + "/" * (item["type"] == "directory")


def _is_content(name: str) -> bool:
    name = name.rstrip("/")
    litter = not name or name in _LITTER or name.startswith(_LITTER_PREFIXES)  # "": a folder marker
    return not litter and not is_temporary(name) and not name.startswith(PROBE_PREFIX)


# What another try would meet again; a full disk is not among them.
_LASTING = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EINVAL),
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTSUP),
}


def check_output(uri: str, kind: OutputKind | None = None) -> None:
    """Raise `ConfigError` where `uri` can be no folder to write to; nothing is left behind.

    Nor one that holds files and is not what `kind` says, where that is given.

    `InputError` where it contains a credential, as `refuse_secrets` and `canonical_uri` say.
    On a disk a hidden folder is made where the missing ones would begin, a file gets its name in it
    as a table's do, and both are removed: of /proc, or as root, permissions alone do not tell. Of
    an object store only that no object has the name, and `AccessError` where credentials of S3 are
    missing, wrong or expired.
    """
    root = canonical_uri(uri)
    refuse_secrets("the output's URI", root)
    fs, path = filesystem(root)
    if is_local_filesystem(fs):
        with storage_errors(f"write to '{root}'"):
            _check_disk(Path(root))
    elif "http" in fs.protocol:
        raise ConfigError(f"the output '{root}' cannot be written to: the web is only read")
    else:
        check_credentials(root)  # `isfile` takes every error for an answer
        with storage_errors(f"look up '{root}'"):
            if fs.isfile(path):
                raise ConfigError(f"the output '{root}' is an object, and is to be a folder")
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

    On a disk also where it is links that lead into the input, or out of it to the output.
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


def _folders_around(path: str) -> set[str]:
    """`path` and all folders that it lies in, as it is written and as it is without links."""
    ways = (Path(path), Path(os.path.realpath(path)))
    return {os.path.realpath(place) for way in ways for place in (way, *way.parents)}


def _check_disk(folder: Path) -> None:
    try:
        there = next(above for above in (folder, *folder.parents) if os.path.lexists(above))
        if not there.is_dir():
            raise ConfigError(f"the output '{folder}' cannot be a folder: '{there}' is a file")
        with tempfile.TemporaryDirectory(prefix=PROBE_PREFIX, dir=there) as probe:
            complete = Path(probe, "complete")
            complete.touch()
            name_if_absent(complete, complete.with_name("named"))
    except OSError as error:
        if error.errno not in _LASTING:
            raise
        why = os.strerror(error.errno or errno.EINVAL)
        raise ConfigError(f"the output '{folder}' cannot be written to: {why}") from error
