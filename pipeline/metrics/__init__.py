"""How good an inversion is: pixel distances, LPIPS, identity, editability; per face and step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.metrics.evaluator import Measures, Meter

__all__ = ["Measures", "Meter"]


def __getattr__(name: str) -> Any:
    # At first use: `pipeline.metrics.names` is asked without PyTorch.
    if name not in __all__:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    from pipeline.metrics import evaluator

    return getattr(evaluator, name)
