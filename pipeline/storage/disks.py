"""How a file on a disk gets a name that no other has, also where there are no hard links."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

# What a file system says that has no hard links, or no flags of a rename: not one that is full.
_UNKNOWN = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
_AT_FDCWD = -100
_RENAME_NOREPLACE = 1


def name_if_absent(temporary: Path, target: Path) -> None:
    """Give a complete file its name; `FileExistsError` where there is one.

    By a link, which unlike a rename refuses a name that is taken; where the file system has none
    (FUSE, exFAT, some network mounts), by Linux's rename that refuses it too. Where there is
    neither, by a look and a rename: the file is whole as ever, but of two writers that look in the
    same moment the second replaces what the first wrote.
    """
    try:
        os.link(temporary, target)
    except OSError as error:
        if error.errno not in _UNKNOWN:
            raise
        if not _renamed(temporary, target):
            if os.path.lexists(target):
                raise FileExistsError(
                    errno.EEXIST, os.strerror(errno.EEXIST), str(target)
                ) from None
            temporary.rename(target)


def _renamed(temporary: Path, target: Path) -> bool:
    """Whether the kernel and the file system know a rename that replaces nothing, and made it."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    paths = (os.fsencode(temporary), os.fsencode(target))
    if rename(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_NOREPLACE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNKNOWN:
        return False
    raise OSError(number, os.strerror(number), str(target))
