"""Engine: plan, Ray Data pipeline, commits, progress. No other package imports Ray."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.engine.console.summary import print_estimate, print_outcome
    from pipeline.engine.dry_run import estimate_job
    from pipeline.engine.run import run_and_ignore_signals, run_job

__all__ = [
    "estimate_job",
    "print_estimate",
    "print_outcome",
    "run_and_ignore_signals",
    "run_job",
]

_MODULES = {
    "estimate_job": "dry_run",
    "print_estimate": "console.summary",
    "print_outcome": "console.summary",
    "run_and_ignore_signals": "run",
    "run_job": "run",
}


def __getattr__(name: str) -> Any:
    # Import on first use: workers that read, align or write import their stage from this package,
    # and PyTorch would cost each of them seconds and hundreds of megabytes.
    if name not in _MODULES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
