"""The two kinds of storage that stores are tested on."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.storage import Store
from tests.conftest import Bucket


@pytest.fixture(params=["disk", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty one."""
    if request.param == "disk":
        return Store(str(tmp_path / "a table"))
    bucket: Bucket = request.getfixturevalue("s3")
    return Store(f"{bucket.uri}/a table")
