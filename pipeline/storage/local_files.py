"""What a disk says of a file, and which of its errors a later run would meet again."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from pipeline.storage.formats import readable_name
from pipeline.storage.objects import UNREADABLE, local_info

# Not EIO, ESTALE, EMFILE and the like: a network disk that is away gives them for every file.
_LASTING = {
    *(errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP),
    *(errno.ENAMETOOLONG, errno.EINVAL, errno.ENXIO, errno.ENODEV, errno.ENOTSUP),
    *(errno.EOVERFLOW, errno.ENOKEY),
}


class Special(OSError):  # noqa: N818 - what is found, as much as what is wrong
    """A socket, pipe or device: opening it may wait for ever."""


def is_lasting(error: OSError) -> bool:
    """Whether this file or folder cannot be read, and others can: no fault of the disk as such."""
    return isinstance(error, Special) or error.errno in _LASTING


def is_there(path: str) -> bool:
    """Whether the name exists, be it a dead link, too long a path, or in a closed folder."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def is_dead_link(path: str) -> bool:
    """Whether `path` is a link to nothing, or in a circle; not one into a closed folder."""
    try:
        os.stat(path)  # noqa: PTH116 - `Path` raises where a path is too long
    except OSError as error:
        nowhere = error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
        return nowhere and os.path.islink(path)  # noqa: PTH114 - as above
    return False


def why_unreadable(path: str, error: OSError) -> str:
    """Return why a file or folder that is there cannot be read; "" where that may pass.

    Of a path that ends in "/" a folder is meant, or a link to one.
    """
    link = path.rstrip("/")
    if not is_lasting(error) or not is_there(link):
        return ""
    if isinstance(error, FileNotFoundError):
        return f"a link to '{readable_name(str(Path(link).readlink()))}', where nothing is"
    return os.strerror(error.errno).lower() if error.errno else str(error)


def local_state(path: str, status: os.stat_result) -> tuple[int, str]:
    """Size and etag of a file; `UNREADABLE` where this user may not read it.

    A change of permissions changes neither size nor modification time. Raises `Special` for what
    is no regular file.
    """
    if not stat.S_ISREG(status.st_mode):
        raise Special(f"'{path}' is a socket, a pipe or a device")
    # Of most files the mode tells, without a call.
    if not status.st_mode & stat.S_IROTH and not os.access(path, os.R_OK, effective_ids=True):
        return status.st_size, UNREADABLE
    info = local_info(status)
    return info.size, info.etag


def present_state(path: str) -> tuple[int, str]:
    """Size and etag of what is at `path` at this time, as a listing has them.

    `path` ends in "/" where it was a folder that could not be listed. Raises `OSError` where that
    may pass, and where nothing is there.
    """
    try:
        if not path.endswith("/"):
            return local_state(path, Path(path).stat())
        with os.scandir(path):
            return 0, "folder"
    except OSError as error:
        if is_lasting(error) and is_there(path.rstrip("/")):
            return 0, UNREADABLE
        raise
