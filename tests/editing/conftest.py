from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.models import RestyleModel, load_model
from pipeline.table import Columns, Table
from tests.interop.tables import table_of
from tests.table.rows import face_row

N_STYLES = 10
TableMaker = Callable[..., Table]


def code(seed: int) -> np.ndarray:
    """Return a code [10, 512] of float32 numbers that float16 holds exactly."""
    draws = np.random.default_rng(seed).standard_normal((N_STYLES, 512))
    return draws.astype(np.float16).astype(np.float32)


@pytest.fixture(scope="session")
def model(tiny_bundle: str) -> RestyleModel:
    return load_model(tiny_bundle)


@pytest.fixture
def make_table(model: RestyleModel, tiny_bundle: str, tmp_path: Path) -> TableMaker:
    """Write a table of the tiny model; each keyword gives a column its values, one per face."""

    def make(**values: Any) -> Table:
        count = len(next(iter(values.values()))) if values else 3
        rows = [
            face_row(
                f"{n}.jpg", w_plus=code(n), **{name: column[n] for name, column in values.items()}
            )
            for n in range(count)
        ]
        table: Table = table_of(
            tmp_path / "table",
            *rows,
            columns=Columns(N_STYLES),
            settings={"model": model.fingerprint},
            config={"model": tiny_bundle},
        )
        return table

    return make
