"""Messages between the worker and its parent."""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

_BOARD = struct.Struct("<qd")


@dataclass(frozen=True)
class Answer:
    """Result of one case: the name of its outcome, or what is wrong with it."""

    seed: int
    outcome: str
    finding: str = ""
    grown_mib: int = 0


class Board:
    """Shared memory that names the current case, so that a crash is attributed to it.

    Holds the case's seed (-1: none) and its start on `time.monotonic`.
    """

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(_BOARD.pack(-1, 0.0))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), _BOARD.size)

    def write(self, seed: int, started: float) -> None:
        """Record that the case of `seed` started at `started`."""
        self._memory[:] = _BOARD.pack(seed, started)

    def read(self) -> tuple[int, float]:
        """Return the current case's seed and start."""
        seed, started = _BOARD.unpack(self._memory[:])
        return int(seed), float(started)
