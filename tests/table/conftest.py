"""A small table on a disk and in a bucket."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Bucket
from tests.table.rows import shard, write_shard, writer


@pytest.fixture(params=["disk", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Path of a table with characters that DuckDB would read as a pattern."""
    if request.param == "disk":
        return str(tmp_path / "it's [a] table")
    bucket: Bucket = request.getfixturevalue("s3")
    return f"{bucket.uri}/it's [a] table"


@pytest.fixture
def filled(root: str) -> str:
    """A table of two committed shards."""
    table = writer(root)
    for name in ("s-0", "s-0-00000"):
        write_shard(table, shard(name))
    return root
