"""What passes between the worker and its parent."""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

_BOARD = struct.Struct("<qd")


@dataclass(frozen=True)
class Answer:
    """What came of one case: the outcome's name, or what is wrong with it."""

    seed: int
    outcome: str
    finding: str = ""
    grown_mib: int = 0


class Board:
    """A few shared bytes that say which case is under way, so that a death is charged to it.

    Holds the case's seed (-1: none) and when it began, on `time.monotonic`.
    """

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(_BOARD.pack(-1, 0.0))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), _BOARD.size)

    def write(self, seed: int, started: float) -> None:
        """Say that the case of `seed` began at `started`."""
        self._memory[:] = _BOARD.pack(seed, started)

    def read(self) -> tuple[int, float]:
        """The case under way and its start."""
        seed, started = _BOARD.unpack(self._memory[:])
        return int(seed), float(started)
