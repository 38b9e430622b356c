"""Quality of inversions per face and step: pixel distances, LPIPS, identity, editability."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.metrics.evaluator import Measures, MetricEvaluator

__all__ = ["Measures", "MetricEvaluator"]


def __getattr__(name: str) -> Any:
    # Imported at first use: `pipeline.metrics.names` and `registry` must load without PyTorch.
    if name not in __all__:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    from pipeline.metrics import evaluator

    return getattr(evaluator, name)
