"""List of metrics: the table's columns and the choices of the best step."""

from __future__ import annotations

from typing import get_args

from pipeline.choices import BestStepBy
from pipeline.metrics.registry import BY_NAME, QUALITY, metric_columns


def test_metric_columns_keep_their_order() -> None:
    final = ["l2", "psnr", "lpips", "id_similarity"]
    assert metric_columns() == [
        *final,
        *(f"{name}_per_step" for name in (*final, "residual_norm")),
        "w_plus_variance",
        "w_avg_distance",
    ]


def test_best_step_choices_are_quality_metrics() -> None:
    chosen = set(get_args(BestStepBy)) - {"last"}
    assert chosen <= set(QUALITY) <= BY_NAME.keys()
