"""Tests that share one real Ray, of one node; those that start or end a Ray are elsewhere."""

from __future__ import annotations

import pytest

MARKS = [
    pytest.mark.timeout(900),
    # Ray Data sets its own deprecated settings, and warns itself of it.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    # Ray leaves the log files of its own processes to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
