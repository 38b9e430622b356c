"""Whether a folder can be written to: asked before the work that is to go there."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

from pipeline.errors import ConfigError, InputError
from pipeline.storage.contents import PROBE_PREFIX, OutputKind, check_contents
from pipeline.storage.disks import name_if_absent
from pipeline.storage.uris import (
    canonical_uri,
    check_credentials,
    filesystem,
    is_local,
    is_local_filesystem,
    refuse_secrets,
    storage_errors,
)

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
