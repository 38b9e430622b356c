"""Limit the memory that a library may allocate while it parses an untrusted file."""

from __future__ import annotations

import resource
from pathlib import Path

_STATM = Path("/proc/self/statm")
_DATA_PAGES = 5  # field of `statm`: private writable memory, without shared mappings
_PAGE = resource.getpagesize()
_MEASURE_EVERY = 32  # blocks; reading `statm` costs ten times as much as setting a limit


class MemoryLimit:
    """Let this process grow by about `headroom` bytes at most in each `with` block.

    Larger allocations fail, usually with a `MemoryError`. The limit (RLIMIT_DATA) counts private
    memory, without Ray's shared object store. Freed memory that the allocator has kept can still be
    used: resident memory can grow by that in addition to `headroom`. Other threads share the limit
    during the block. Outside Linux, and under a lower existing limit, nothing is limited.
    """

    def __init__(self, headroom: int) -> None:
        self._headroom = headroom
        self._before = resource.getrlimit(resource.RLIMIT_DATA)
        self._during = self._before
        self._blocks = 0

    def __enter__(self) -> None:
        if self._blocks % _MEASURE_EVERY == 0:
            self._measure()
        self._blocks += 1
        resource.setrlimit(resource.RLIMIT_DATA, self._during)

    def __exit__(self, *_: object) -> None:
        resource.setrlimit(resource.RLIMIT_DATA, self._before)

    def _measure(self) -> None:
        try:
            used = int(_STATM.read_bytes().split()[_DATA_PAGES]) * _PAGE
        except OSError:
            return
        limit = used + self._headroom
        lower = [value for value in self._before if value != resource.RLIM_INFINITY]
        if all(limit < value for value in lower):
            self._during = (limit, self._before[1])
