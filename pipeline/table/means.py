"""Means of a table's metrics after each step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.table.reader import Table

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped]

METRICS = ("l2", "psnr", "lpips", "id_similarity", "residual_norm")


def means_per_step(table: Table, metrics: Sequence[str] = METRICS) -> pd.DataFrame:
    """One row a step, from 1: its number `step` and the mean of each of `metrics`, NaN for none.

    A face that stopped early counts with its last value in every later step, so that all means
    are over the same faces: those that the metric could be measured on.
    """
    means = ", ".join(f"avg({name}_per_step[least(step, steps)]) AS {name}" for name in metrics)
    return table.sql(
        f"SELECT step, {means} FROM latents,"
        " (SELECT unnest(range(1, max(steps) + 1)) AS step FROM latents)"
        " GROUP BY step ORDER BY step"
    )
