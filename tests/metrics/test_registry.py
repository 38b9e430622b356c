"""The one list of metrics."""

from __future__ import annotations

from typing import get_args

from pipeline.choices import BestStepBy
from pipeline.metrics.registry import BY_NAME, QUALITY, metric_columns


def test_columns_are_those_of_every_table_so_far() -> None:
    final = ["l2", "psnr", "lpips", "id_similarity"]
    assert metric_columns() == [
        *final,
        *(f"{name}_per_step" for name in (*final, "residual_norm")),
        "w_plus_variance",
        "w_avg_distance",
    ]


def test_the_best_step_is_chosen_by_a_metric_of_quality() -> None:
    chosen = set(get_args(BestStepBy)) - {"last"}
    assert chosen <= set(QUALITY) <= BY_NAME.keys()
