from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_photos(shared: Path) -> Path:
    return shared / "photos"


@pytest.fixture(scope="session")
def shared_alignment(shared: Path) -> Path:
    return shared / "reference" / "alignment"
