"""Check the requests and tables of reports, before PyTorch is imported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from pipeline.errors import ConfigError, RequestError
from pipeline.storage import list_shards
from pipeline.table import Table

MAX_STEPS = 100  # limit of jobs/invert_dataset.py


def require_matplotlib() -> None:
    """Raise `RequestError` if matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        raise RequestError(
            "plots need matplotlib: pip install 'restyle-pipeline[reports]', or add --no-plots"
        )


@dataclass(frozen=True)
class ComparisonOptions:
    """Options of a comparison of tables."""

    labels: Sequence[str] = ()  # one per table; default: from its rows
    common: bool = False  # compare the faces that all tables have
    ground_truth: str | None = None  # URI of the pairs that the tables were made from
    coarse_to_fine: bool = False
    images: int = 100  # faces rendered for image frequencies
    plots: bool = True


def check_comparison(tables: Sequence[Table], options: ComparisonOptions) -> None:
    """Raise a `RequestError` for an impossible comparison, without reading rows."""
    labels = options.labels
    if labels and (len(labels) != len(tables) or len(set(labels)) != len(labels)):
        raise RequestError(
            f"{len(labels)} labels for {len(tables)} tables: give each table a different label"
        )
    if options.plots:
        require_matplotlib()
    for table in tables if options.coarse_to_fine else ():
        if not table.spec.columns.all_steps:
            raise RequestError(
                f"the table '{table.store.root}' has no codes of single steps: make it with "
                "--keep-steps for a coarse-to-fine analysis"
            )
    if options.ground_truth is not None:
        list_shards(options.ground_truth).first()


def check_calibration(most: int, like_steps: int, tolerance: float) -> None:
    """Raise `ConfigError` for settings with which no stop rule can be calibrated."""
    if not 2 <= most <= MAX_STEPS:
        raise ConfigError(f"the maximum number of steps must be 2 to {MAX_STEPS}, got {most}")
    if like_steps > most:
        raise ConfigError(f"{like_steps} steps to compare with are more than the maximum, {most}")
    if not 0 <= tolerance < float("inf"):
        raise ConfigError(f"the tolerance must be a fraction of L2, 0 or more, got {tolerance}")
