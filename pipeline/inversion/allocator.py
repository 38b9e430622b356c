"""Keep freed memory in the process: halves the time of a large generator on a CPU.

Feature maps of 1024 px take 128 MB. By default glibc returns each to the kernel when it is freed,
and the next layer gets new, zeroed pages: 17 of 36 CPU seconds per image in the published loop.
With these settings freed maps are used again, and the process keeps its peak memory until it ends.
"""

from __future__ import annotations

import ctypes

# From <malloc.h>
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
NEVER, NONE = -1, 0
HEADROOM = 128 * 2**20


def keep_freed_memory() -> bool:
    """Make glibc keep freed memory for the whole process; return False without glibc.

    Call it once, before the first model is loaded, in a process that only inverts.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    settings = ((M_MMAP_MAX, NONE), (M_TRIM_THRESHOLD, NEVER), (M_TOP_PAD, HEADROOM))
    return all(mallopt(name, value) == 1 for name, value in settings)
