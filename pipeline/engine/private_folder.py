"""Private folder of a run, for the sockets, logs and crash counts of its own Ray.

Ray makes its folders writable for everyone. They are inside a folder that only this user can
enter, with a name that others cannot predict, and that is removed at the end. A killed driver
leaves its folder behind; the next run of the same user removes it, as the lock on it is free.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
import time
from pathlib import Path

_PREFIX = "restyle-"
_LOCK = "lock"
# A socket's path has at most 107 bytes: below the folder up to 70 of Ray's session, 18 of ours.
_LONGEST_PARENT = 18
_UNLOCKED_S = 3600.0  # after this a folder without a lock is one of a killed driver
_REMOVE_S = 10.0  # Ray's processes write their last lines while they end

_held: dict[str, int] = {}  # folders of this process, and the open files that lock them


def make_private_folder() -> Path:
    """Create a folder with mode 0700 in the temp directory, or in /tmp if that path is too long."""
    parent = tempfile.gettempdir()
    if len(os.fsencode(parent)) > _LONGEST_PARENT:
        parent = "/tmp"
    _remove_left_over(Path(parent))
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    new = folder / "new"
    lock = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    new.rename(folder / _LOCK)  # other runs see it only when it is locked
    _held[str(folder)] = lock
    return folder


def remove_private_folder(folder: Path) -> None:
    """Delete the folder; waits a few seconds for processes that still write there."""
    deadline = time.monotonic() + _REMOVE_S
    while folder.exists() and time.monotonic() < deadline:
        shutil.rmtree(folder, ignore_errors=True)
        if folder.exists():
            time.sleep(0.1)
    if (lock := _held.pop(str(folder), None)) is not None:
        os.close(lock)


def is_private(folder: Path) -> bool:
    """Return whether a path is a folder, not a link, that only this user may enter."""
    status = folder.lstat()
    return (
        stat.S_ISDIR(status.st_mode)
        and status.st_uid == os.geteuid()
        and not stat.S_IMODE(status.st_mode) & 0o077
    )


def _remove_left_over(parent: Path) -> None:
    """Delete the folders of this user's killed drivers."""
    for folder in parent.glob(f"{_PREFIX}????????"):
        try:
            if is_private(folder) and _is_left_over(folder):
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # removed meanwhile, or owned by another user
            continue


def _is_left_over(folder: Path) -> bool:
    try:
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return time.time() - folder.lstat().st_mtime > _UNLOCKED_S
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return True
