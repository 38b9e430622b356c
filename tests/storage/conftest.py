"""Fixtures of the storage tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.storage import Store
from tests.conftest import Bucket


@pytest.fixture(params=["disk", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """Return an empty store, on a disk and in a bucket."""
    if request.param == "disk":
        return Store(str(tmp_path / "a table"))
    bucket: Bucket = request.getfixturevalue("s3")
    return Store(f"{bucket.uri}/a table")
