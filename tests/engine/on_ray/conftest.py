"""One Ray for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.engine.cluster import RaySession, Resources

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="package")
def one_node() -> Iterator[Resources]:
    """Run a Ray as a job starts it; its workers can import the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        # Ray ends idle workers after a second; the next test needs them again.
        patch.setenv("RAY_idle_worker_killing_time_threshold_ms", "600000")
        # Ray Data starts 32 processes to read the footers of any number of files.
        patch.setenv("RAY_DATA_PARQUET_FOOTER_NUM_ACTORS", "1")
        with RaySession() as resources:
            yield resources


@pytest.fixture
def joined(one_node: Resources, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let jobs of this process use the Ray that runs, where they would start their own."""
    monkeypatch.setattr(RaySession, "__enter__", lambda _: one_node)
