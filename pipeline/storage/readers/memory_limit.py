"""A limit on the memory that a library may ask for while it parses what others wrote."""

from __future__ import annotations

import resource
from pathlib import Path

_STATM = Path("/proc/self/statm")
_DATA_PAGES = 5  # of `statm`: private memory that is written to, without shared mappings
_PAGE = resource.getpagesize()
_LOOK_EVERY = 32  # blocks; looking costs ten times what setting a limit does


class MemoryLimit:
    """Lets this process grow by about `headroom` bytes at most in a `with` block, again and again.

    Beyond it an allocation fails, as a `MemoryError` where the library says so. Counted is private
    memory (RLIMIT_DATA), so that Ray's shared object store does not count. Not stopped is what fits
    into memory that the process has mapped before and does not use, such as what an allocator keeps
    of what was freed: resident memory can grow by that, and by `headroom`. Other threads share the
    limit while the block lasts. On Linux; elsewhere, and under a lower limit, nothing is limited.
    """

    def __init__(self, headroom: int) -> None:
        self._headroom = headroom
        self._before = resource.getrlimit(resource.RLIMIT_DATA)
        self._during = self._before
        self._blocks = 0

    def __enter__(self) -> None:
        if self._blocks % _LOOK_EVERY == 0:
            self._look()
        self._blocks += 1
        resource.setrlimit(resource.RLIMIT_DATA, self._during)

    def __exit__(self, *_: object) -> None:
        resource.setrlimit(resource.RLIMIT_DATA, self._before)

    def _look(self) -> None:
        try:
            used = int(_STATM.read_bytes().split()[_DATA_PAGES]) * _PAGE
        except OSError:
            return
        limit = used + self._headroom
        lower = [value for value in self._before if value != resource.RLIM_INFINITY]
        if all(limit < value for value in lower):
            self._during = (limit, self._before[1])
