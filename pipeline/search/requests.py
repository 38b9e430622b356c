"""Checks of requests for a search, before PyTorch is imported."""

from __future__ import annotations

from importlib.util import find_spec
from typing import get_args

from pipeline.choices import SearchBy
from pipeline.errors import ConfigError, RequestError
from pipeline.table.reader import Table


def default_by(table: Table) -> SearchBy:
    """Return `identity` if the table has the column, else `w_plus`."""
    return "identity" if table.spec.columns.identity else "w_plus"


def check_by(table: Table, by: str) -> None:
    """Raise `ConfigError` if the table has no vectors of the kind `by`."""
    if by not in get_args(SearchBy):
        raise ConfigError(f"by is {by!r}, expected one of {', '.join(get_args(SearchBy))}")
    if by == "identity" and not table.spec.columns.identity:
        raise ConfigError(
            f"the table '{table.store.root}' has no column identity: search --by w_plus, or make "
            "the table again (--keep-identity is the default where an identity is measured)"
        )


def check_threshold(threshold: float) -> None:
    """Raise `ConfigError` unless `threshold` is a similarity of two faces."""
    if not -1 < threshold <= 1:
        raise ConfigError(f"the threshold is a similarity above -1 and up to 1, not {threshold:g}")


def require_faiss() -> None:
    """Raise `RequestError` if faiss is not installed."""
    if find_spec("faiss") is None:
        raise RequestError(
            "--approximate needs faiss: pip install 'restyle-pipeline[search]', or leave it out, "
            "which compares every pair"
        )
