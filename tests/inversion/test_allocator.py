"""Reuse of freed memory, tested in child processes since the setting is global to a process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ALLOCATOR = str(ROOT / "pipeline" / "inversion" / "allocator.py")  # by path: needs no torch
FAULTS = """
import ctypes, resource, runpy, sys
import numpy as np
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: one fault per 4 KB page, not per 2 MB
keep_freed_memory = runpy.run_path(sys.argv[2])["keep_freed_memory"]
kept = keep_freed_memory() if sys.argv[1] == "keep" else None
np.ones(8_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    np.ones(8_000_000)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def count_faults(mode: str) -> tuple[str, int]:
    """Return the call's result, and the page faults of ten arrays of 64 MB made in turn."""
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, mode, ALLOCATOR], capture_output=True, text=True, check=True
    )
    kept, count = done.stdout.split()
    return kept, int(count)


def test_freed_memory_is_reused() -> None:
    kept, count = count_faults("keep")
    if kept == "False":
        pytest.skip("this C library has no mallopt")
    assert count < 200
    assert count_faults("default")[1] > 1000
