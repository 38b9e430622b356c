"""Shared environment of the schedules."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.world import World, shared_world
from tests.s3_server import S3Server


@pytest.fixture(scope="package")
def world(tmp_path_factory: pytest.TempPathFactory, s3_server: S3Server) -> Iterator[World]:
    """Return one environment for the tests of this folder; its cluster ends with them."""
    with shared_world(tmp_path_factory.mktemp("faults"), s3_server) as shared:
        yield shared
