"""Choose a bounded number of faces of a table, and lay out their codes on a plane."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.table.selection import Selection

DEFAULT_ROWS = 1000  # of a report's table and map
_RUN = 16  # neighbouring faces of a sample, so that few row groups have to be read for their codes


def sampled_rows(
    selection: Selection, columns: Sequence[str], faces: int, limit: int
) -> list[dict[str, Any]]:
    """Return `columns` of at most `limit` of the `faces` selected faces, evenly spread.

    Takes runs of 16 neighbours in the order of the selection; all faces if they are few enough.
    """
    listed = ", ".join(columns)
    if faces <= limit:
        return _rows(selection, selection.query(listed))
    size = min(_RUN, limit)
    runs = limit // size
    # The run of face i begins at the first face of its share of the table.
    place = f"i - ((i * {runs}) // {faces} * {faces} + {runs - 1}) // {runs}"
    numbered = f"SELECT {listed}, row_number() OVER () - 1 AS i FROM ({selection.query(listed)})"
    query = f"SELECT {listed} FROM ({numbered}) WHERE {place} < {size}"
    return _rows(selection, query)


def extreme_rows(
    selection: Selection, columns: Sequence[str], rank: str, count: int, *, highest: bool
) -> list[dict[str, Any]]:
    """Return `columns` of the `count` selected faces of the highest, or lowest, finite `rank`."""
    direction = "DESC" if highest else "ASC"
    return _rows(
        selection,
        f"SELECT {', '.join(columns)} FROM {selection.source} WHERE isfinite({rank}) "
        f"ORDER BY {rank} {direction}, image_id LIMIT {count}",
    )


def _rows(selection: Selection, query: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = selection.table.arrow(query).to_pylist()
    return rows


@dataclass(frozen=True)
class CodeMap:
    """Codes on the plane of their two principal components.

    `points` [n, 2] are in [-1, 1], on one scale for both axes. `shares` are the parts of the
    variance that the two components have.
    """

    points: NDArray[np.float32]
    shares: tuple[float, float]


def code_map(codes: NDArray[np.float32]) -> CodeMap | None:
    """Return the principal components of codes [n, n_styles, 512]; None for fewer than three.

    Exact: the eigenvectors of the n×n matrix of inner products. The sign of a component is chosen
    so that its largest coordinate is positive.
    """
    if len(codes) < 3:
        return None
    flat = codes.reshape(len(codes), -1).astype(np.float64)
    flat -= flat.mean(axis=0)
    values, vectors = np.linalg.eigh(flat @ flat.T)
    values = np.maximum(values[::-1][:2], 0)
    total = float(np.square(flat).sum())
    if not total:
        return None
    points = vectors[:, ::-1][:, :2] * np.sqrt(values)
    largest = points[np.abs(points).argmax(axis=0), [0, 1]]
    points *= np.where(largest < 0, -1, 1)
    points /= np.abs(points).max()
    first, second = (float(value) / total for value in values)
    return CodeMap(points.astype(np.float32), (first, second))


def same_images(selection: Selection, limit: int) -> tuple[int, list[dict[str, Any]]]:
    """Return the number of images that occur several times, and `limit` of them.

    Images are compared by the SHA-256 of their bytes. Each has `copies`, the number of its places,
    and the first and the last of their `keys`.
    """
    rows = _rows(
        selection,
        "SELECT count(DISTINCT (shard, key)) AS copies, min(key) AS first_key, max(key) AS "
        f"last_key, count(*) OVER () AS images FROM {selection.source} WHERE source_sha256 <> '' "
        "GROUP BY source_sha256 HAVING copies > 1 ORDER BY copies DESC, source_sha256 "
        f"LIMIT {limit}",
    )
    return (rows[0]["images"] if rows else 0), rows


def reject_reasons(selection: Selection) -> list[dict[str, Any]]:
    """Return the rejects of the whole table by reason, with an example: the most frequent first."""
    return _rows(
        selection,
        "SELECT reason, count(*) AS n, min(key) AS key, arg_min(detail, key) AS detail "
        "FROM rejects GROUP BY reason ORDER BY n DESC, reason",
    )
