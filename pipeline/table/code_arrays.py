"""Columns of codes, as DuckDB gives them, as arrays: no Python object for each number."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.table.schema import STYLE_DIM


class StepCodes(NamedTuple):
    """The codes of all steps of n faces, one face's after the other's."""

    codes: NDArray[np.float32]  # [sum of steps, n_styles, 512]
    offsets: NDArray[np.int64]  # [n + 1]; face i has the codes offsets[i] to offsets[i + 1]


def codes_of(column: pa.ListArray, n_styles: int) -> NDArray[np.float32]:
    """A `w_plus` column, lists of lists of numbers, as [n, n_styles, 512]."""
    numbers = column.flatten().flatten().to_numpy(zero_copy_only=False)
    return np.asarray(numbers, np.float32).reshape(-1, n_styles, STYLE_DIM)


def step_codes_of(column: pa.ListArray, n_styles: int) -> StepCodes:
    """A `w_plus_per_step` column, one level of lists deeper."""
    lengths = column.value_lengths().fill_null(0).to_numpy()
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return StepCodes(codes_of(column.flatten(), n_styles), offsets)
