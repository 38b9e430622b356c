"""Mean codes of groups of faces."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError, RequestError
from pipeline.table.schema import STYLE_DIM
from pipeline.table.selection import Selection

_IN_QUERY = re.compile(r" LINE \d+: .*")
MAX_GROUPS = 64
_ROWS = 512  # 19 MB of codes with 18 rows


class GroupMean(NamedTuple):
    """Mean code [n_styles, 512] of the faces for which an SQL expression has one value."""

    value: str | None  # as text
    faces: int
    code: NDArray[np.float32]


def group_means(selection: Selection, expression: str) -> list[GroupMean]:
    """Return the mean code of each group of the selected faces, in the order of the values.

    `expression` is an SQL expression on rows, such as `width > 600` or `round(yaw, 1)`. Codes are
    added up in float64 while they are read; memory holds one sum per group. Raises `RequestError`
    for an invalid expression or no faces, and `ConfigError` for more than 64 groups.
    """
    selection.require_rows()
    group_of = _groups(selection, expression)
    shape = (selection.table.spec.columns.n_styles, STYLE_DIM)
    sums = {group: np.zeros(shape, np.float64) for group in group_of.values()}
    counts = dict.fromkeys(sums, 0)
    for batch, codes in selection.unordered().code_batches(_ROWS, f"{_text(expression)} AS value"):
        values = batch.column(0).to_pylist()
        if unknown := set(values) - group_of.keys():
            raise RequestError(
                f"--group-by {expression!r} gave {sorted(map(str, unknown))[0]} when it was "
                "computed again: it has to give the same value for a row each time"
            )
        groups = np.array([group_of[value] for value in values])
        for group in np.unique(groups).tolist():
            chosen = codes[groups == group]
            sums[group] += chosen.sum(axis=0, dtype=np.float64)
            counts[group] += len(chosen)
    value_of = {group: value for value, group in group_of.items()}
    return [
        GroupMean(value_of[group], counts[group], (total / counts[group]).astype(np.float32))
        for group, total in sorted(sums.items())
        if counts[group]
    ]


def _groups(selection: Selection, expression: str) -> dict[str | None, int]:
    """Return the number of the group of each value as text, in the order of the values.

    Equal values have one number: the texts 0.0 and -0.0.
    """
    query = (
        "SELECT name, dense_rank() OVER (ORDER BY value NULLS LAST) AS number FROM (SELECT "
        f"DISTINCT {_text('value')} AS name, value FROM (SELECT ({expression}\n) AS value FROM "
        f"{selection.source})) ORDER BY number, name LIMIT {MAX_GROUPS + 1}"
    )
    try:
        rows = selection.table.arrow(query).to_pylist()
    except RequestError as error:
        reason = _IN_QUERY.sub("", str(error).removeprefix("the query failed: "))
        raise RequestError(f"--group-by {expression!r} failed: {reason}") from error
    if len(rows) > MAX_GROUPS:
        raise ConfigError(
            f"--group-by {expression!r} gives more than {MAX_GROUPS} groups: group by ranges, such "
            "as 'round(yaw, 1)' or 'width > 600'"
        )
    return {row["name"]: row["number"] for row in rows}


def _text(expression: str) -> str:
    """Return SQL of an expression's value as text."""
    return f"CAST(({expression}\n) AS VARCHAR)"
