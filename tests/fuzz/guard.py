"""Monitor one case from inside its process: memory, files outside its folder, foreign code."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.fuzz.kind import BrokenPromiseError

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
# Events of `sys.addaudithook` that bad input must never cause.
_NEVER = {
    *("subprocess.Popen", "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn"),
    *("socket.connect", "socket.bind", "pickle.find_class", "ctypes.dlopen", "shutil.rmtree"),
}
_TEMPORARY = Path(tempfile.gettempdir())
_WRITES = {"os.mkdir", "os.rename", "os.link", "os.symlink", "os.remove", "os.truncate", "os.chmod"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Guard:
    """Audit hook for what Python code does in a case; one per process, as hooks are permanent."""

    def __init__(self, *folders: Path) -> None:
        self.folders = tuple(f"{folder.resolve()}{os.sep}" for folder in folders)
        self.active = False
        self.events: list[str] = []
        sys.addaudithook(self._audit)

    def check(self) -> None:
        """Raise `BrokenPromiseError` with the forbidden events since the last check."""
        events, self.events = self.events, []
        if events:
            raise BrokenPromiseError(f"bad input caused {'; '.join(events[:3])}")

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.active:
            return
        if event in ("os.mkdir", "shutil.rmtree") and _is_spill(arguments[0]):
            return  # a query's own folder, which is removed after it
        if event in _NEVER:
            self.events.append(f"{event}{arguments!r:.200}")
        elif event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & _WRITING and self._outside(path):
                self.events.append(f"writing to {path!r}")
        elif event in _WRITES:
            paths = [path for path in arguments if isinstance(path, str | bytes | os.PathLike)]
            self.events += [f"{event} of {path!r}" for path in paths if self._outside(path)]

    def _outside(self, path: Any) -> bool:
        if isinstance(path, int):
            return False
        absolute = os.path.realpath(os.fsdecode(path))
        return not f"{absolute}{os.sep}".startswith(self.folders) and absolute != os.devnull


def _is_spill(path: Any) -> bool:
    folder = Path(os.fsdecode(path))
    return folder.parent == _TEMPORARY and folder.name.startswith("restyle-query-")


def forget_peak() -> None:
    """Reset the kernel's peak of this process's memory."""
    _CLEAR.write_text("5")


def memory_mib(field: str) -> int:
    """Return `VmRSS`, or its peak `VmHWM`, of this process in MiB."""
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) >> 10
    raise LookupError(field)
