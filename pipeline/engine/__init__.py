"""The engine: plan, Ray Data pipeline, commits, progress. The only package that imports Ray."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.engine.console import print_estimate, print_outcome
    from pipeline.engine.dry_run import estimate_job
    from pipeline.engine.run import run_and_ignore_signals, run_job

__all__ = [
    "estimate_job",
    "print_estimate",
    "print_outcome",
    "run_and_ignore_signals",
    "run_job",
]

_HOMES = {
    "estimate_job": "dry_run",
    "print_estimate": "console",
    "print_outcome": "console",
    "run_and_ignore_signals": "run",
    "run_job": "run",
}


def __getattr__(name: str) -> Any:
    # Importing at first use: a worker that reads, aligns or writes imports its stage out of this
    # package, and PyTorch would cost each of them seconds and hundreds of megabytes.
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
