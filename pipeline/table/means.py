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
    each = ", ".join(
        f"sum({name}_per_step[step]) AS {name}, count({name}_per_step[step]) AS n_{name}"
        for name in metrics
    )
    lists = ", ".join(f"{name}_per_step" for name in metrics)
    means = ", ".join(f"sum({name}) / nullif(sum(n_{name}), 0) AS {name}" for name in metrics)
    # The latents are read once: a large table's many small files are what this costs.
    return table.sql(
        "WITH sums AS MATERIALIZED ("
        f"SELECT steps, step, {each} FROM"
        f" (SELECT steps, {lists}, unnest(range(1, steps + 1)) AS step FROM latents)"
        " GROUP BY steps, step)"
        f" SELECT every.step, {means}"
        " FROM (SELECT unnest(range(1, max(steps) + 1)) AS step FROM sums) AS every"
        " JOIN sums ON sums.step = least(every.step, sums.steps)"
        " GROUP BY every.step ORDER BY every.step"
    )
