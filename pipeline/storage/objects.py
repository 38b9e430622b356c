"""Metadata of stored objects and of files on a disk: size, etag, modification time."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from pipeline.storage.file_types import readable_name

_ETAG_FIELDS = (
    "ETag",
    "etag",
    "md5Hash",
    "content_md5",
    "crc32c",
    "mtime",
    "LastModified",
    "created",
    "blob_id",  # of the Hugging Face hub
    "Content-MD5",
    "Digest",
    "Last-Modified",  # of a web server without an `ETag`
)

UNREADABLE = "unreadable"  # etag of a file or folder that this user cannot read

_TIME_FIELDS = ("LastModified", "last_modified", "mtime", "updated", "created")


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """Size of an object in bytes, and its etag, a short text that changes with the content.

    `modified` is the time of the last write in seconds since 1970, by the storage's clock; 0 if
    unknown.
    """

    size: int
    etag: str
    modified: float = field(default=0.0, compare=False)


def local_info(status: os.stat_result) -> ObjectInfo:
    """Return the `ObjectInfo` of a file on a disk, whose etag is its size and modification time."""
    etag = f"{status.st_size}-{status.st_mtime_ns}"
    return ObjectInfo(status.st_size, etag, status.st_mtime)


def object_info(details: dict[str, Any]) -> ObjectInfo:
    """Return the `ObjectInfo` of a file described by `fs.info`, `fs.ls` or a page of a listing.

    The etag is the storage's own with the size in front; storages without etags give the
    modification time instead.
    """
    size = int(details.get("size") or details.get("Size") or 0)
    value = str(next(filter(None, map(details.get, _ETAG_FIELDS)), "unknown")).strip('"')
    own = value if len(value) <= 64 else hashlib.sha256(value.encode()).hexdigest()[:32]
    times = (details.get(name) for name in _TIME_FIELDS)
    modified = next((time.timestamp() for time in times if isinstance(time, datetime)), 0.0)
    return ObjectInfo(size, f"{size}-{own}", modified)


# Errors of one file. EIO, ESTALE or EMFILE are not among them: a network disk that is away raises
# them for every file.
_PERMANENT = {
    *(errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP),
    *(errno.ENAMETOOLONG, errno.EINVAL, errno.ENXIO, errno.ENODEV, errno.ENOTSUP),
    *(errno.EOVERFLOW, errno.ENOKEY),
}


class Special(OSError):  # noqa: N818 - names the kind of file, not only the error
    """Socket, pipe or device: opening it may block for ever."""


def is_permanent(error: OSError) -> bool:
    """Return whether `error` concerns one file or folder and stays, unlike a fault of the disk."""
    return isinstance(error, Special) or error.errno in _PERMANENT


def path_exists(path: str) -> bool:
    """Return whether `path` exists, also as a dead link, too long a path or in a closed folder."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def is_dead_link(path: str) -> bool:
    """Return whether `path` is a link to nothing or to itself; not a link into a closed folder."""
    try:
        os.stat(path)  # noqa: PTH116 - `Path` raises where a path is too long
    except OSError as error:
        nowhere = error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
        return nowhere and os.path.islink(path)  # noqa: PTH114 - as above
    return False


def why_unreadable(path: str, error: OSError) -> str:
    """Return why an existing file or folder cannot be read; "" if a later run may read it.

    A path that ends in "/" names a folder, or a link to one.
    """
    link = path.rstrip("/")
    if not is_permanent(error) or not path_exists(link):
        return ""
    if isinstance(error, FileNotFoundError):
        return f"a link to '{readable_name(str(Path(link).readlink()))}', where nothing is"
    return os.strerror(error.errno).lower() if error.errno else str(error)


def local_state(path: str, status: os.stat_result) -> tuple[int, str]:
    """Return size and etag of a file; the etag is `UNREADABLE` if this user may not read it.

    A change of permissions changes neither size nor modification time, so it needs its own etag.
    Raises `Special` if it is not a regular file.
    """
    if not stat.S_ISREG(status.st_mode):
        raise Special(f"'{path}' is a socket, a pipe or a device")
    # For most files the mode suffices, without another system call.
    if not status.st_mode & stat.S_IROTH and not os.access(path, os.R_OK, effective_ids=True):
        return status.st_size, UNREADABLE
    info = local_info(status)
    return info.size, info.etag


def present_state(path: str) -> tuple[int, str]:
    """Return the current size and etag of the file at `path`, as a listing has them.

    A `path` that ends in "/" is a folder that could not be listed. Raises `OSError` if nothing
    exists there, or if the error may pass.
    """
    try:
        if not path.endswith("/"):
            return local_state(path, Path(path).stat())
        with os.scandir(path):
            return 0, "folder"
    except OSError as error:
        if is_permanent(error) and path_exists(path.rstrip("/")):
            return 0, UNREADABLE
        raise
