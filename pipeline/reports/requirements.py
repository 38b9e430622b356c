"""What a report needs of its request and its tables: checked before PyTorch is imported."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from pipeline.errors import ConfigError, RequestError
from pipeline.storage import list_shards
from pipeline.table import Table

LONGEST_LOOP = 100  # steps that jobs/invert_dataset.py lets a face make


def require_matplotlib() -> None:
    """Raise `RequestError` that says what to install if there is no matplotlib."""
    if find_spec("matplotlib") is None:
        raise RequestError(
            "plots need matplotlib: pip install 'restyle-pipeline[reports]', or add --no-plots"
        )


def require_steps(table: Table) -> None:
    """Raise `RequestError` if the table does not keep the code of every step."""
    if not table.spec.columns.all_steps:
        raise RequestError(
            f"the table '{table.store.root}' keeps no code of single steps: make it with "
            "--keep-steps to see what each step changes"
        )


def require_crops_and_steps(table: Table) -> None:
    """Raise `RequestError` if the table does not keep what a contact sheet shows."""
    columns = table.spec.columns
    if not (columns.all_steps and columns.aligned_jpeg):
        raise RequestError(
            f"the table '{table.store.root}' holds no crops and steps to show: "
            "make it with --keep-crops and --keep-steps"
        )


def require_labels(labels: Sequence[str], tables: int) -> None:
    """Raise `RequestError` unless no label is given, or each of `tables` has one of its own."""
    if labels and (len(labels) != tables or len(set(labels)) != len(labels)):
        raise RequestError(
            f"{len(labels)} labels for {tables} tables: give each table one of its own"
        )


def check_comparison(
    tables: Sequence[Table],
    *,
    labels: Sequence[str],
    ground_truth: str | None,
    coarse_to_fine: bool,
    plots: bool,
) -> None:
    """Raise a `RequestError` for a comparison that cannot be made, without reading a row."""
    require_labels(labels, len(tables))
    if plots:
        require_matplotlib()
    if coarse_to_fine:
        for table in tables:
            require_steps(table)
    if ground_truth is not None:
        list_shards(ground_truth).first()


def check_calibration(most: int, like_steps: int, tolerance: float) -> None:
    """Raise `ConfigError` where no rule of at most `most` steps can be compared as requested."""
    if not 2 <= most <= LONGEST_LOOP:
        raise ConfigError(f"the longest loop is to have 2 to {LONGEST_LOOP} steps, not {most}")
    if like_steps > most:
        raise ConfigError(f"a loop of {most} steps cannot be compared with one of {like_steps}")
    if not 0 <= tolerance < float("inf"):
        raise ConfigError(f"the tolerance is to be a share of L2, 0 or more, not {tolerance}")
