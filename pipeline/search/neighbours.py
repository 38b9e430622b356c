"""Nearest faces of some faces, or all that are similar: exact, in one pass over a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import pyarrow as pa
import torch
from torch import Tensor

from pipeline.choices import SearchBy
from pipeline.errors import ConfigError, RequestError
from pipeline.search.requests import default_by
from pipeline.search.vectors import Block, Vectors
from pipeline.table.selection import Selection

# Queries that are compared with a block at the same time: bounds the memory for similarities.
_QUERIES_AT_ONCE = 256


class Neighbour(NamedTuple):
    """Face of a table, and its similarity to the query, -1..1."""

    image_id: str
    similarity: float


def nearest(
    vectors: Vectors,
    queries: Tensor,  # [q, d], vectors of the same kind
    k: int,
    names: Sequence[str | None] = (),  # of the queries; a face is left out of its own neighbours
) -> list[list[Neighbour]]:
    """Return the `k` most similar faces of each query, the most similar first, equal ones by id.

    Exact: every face is compared. There are fewer where the selection has fewer faces. Memory holds
    a block of vectors and the candidates. Raises `RequestError` if the queries have another length.
    """
    if k < 1:
        raise ConfigError(f"k must be at least 1, got {k}")
    names = names or [None] * len(queries)
    collected = [_Candidates(part, k + 1) for part in queries.split(_QUERIES_AT_ONCE)]
    for block in vectors.blocks():
        for candidates in collected:
            candidates.add(block)
    rows = [row for candidates in collected for row in candidates.rows()]
    return [
        [neighbour for neighbour in row if neighbour.image_id != name][:k]
        for row, name in zip(rows, names, strict=True)
    ]


def faces_above(vectors: Vectors, queries: Tensor, threshold: float) -> dict[str, float]:
    """Return the similarity of each face to the nearest of `queries` [q, d], the largest first.

    Only similarities of `threshold` or more; equal ones by id. Exact, in one pass that holds a
    block of vectors. Raises `RequestError` if the queries have another length than the vectors.
    """
    similarities: dict[str, float] = {}
    for block in vectors.blocks():
        _check_length(block, queries)
        values = (block.vectors @ queries.T).amax(dim=1).clamp(-1, 1)
        places = (values >= threshold).nonzero().flatten().tolist()
        ids = block.ids.take(places).to_pylist()
        similarities.update(zip(ids, values[places].tolist(), strict=True))
    return dict(sorted(similarities.items(), key=lambda item: (-item[1], item[0])))


def nearest_frame(
    selection: Selection,
    like: str | Sequence[str] | np.ndarray,
    k: int,
    by: SearchBy | None = None,
) -> pd.DataFrame:
    """Return the neighbours in `selection` of `like` as the frame of `Table.nearest`."""
    vectors = Vectors(selection, by or default_by(selection.table), held_bytes=0)
    if isinstance(like, np.ndarray):
        queries = _of_array(vectors, like)
        labels: list[Any] = list(range(len(queries)))
        names: list[str | None] = [None] * len(queries)
    else:
        labels = [like] if isinstance(like, str) else list(like)
        names = list(labels)
        queries = vectors.of_ids(labels)
    rows = [
        (label, rank, *neighbour)
        for label, neighbours in zip(labels, nearest(vectors, queries, k, names), strict=True)
        for rank, neighbour in enumerate(neighbours, 1)
    ]
    return pd.DataFrame(rows, columns=["query", "rank", "image_id", "similarity"])


def _check_length(block: Block, queries: Tensor) -> None:
    if block.vectors.shape[1] != queries.shape[1]:
        raise RequestError(
            f"the queries have {queries.shape[1]} numbers, the table's vectors "
            f"{block.vectors.shape[1]}: they are of another network"
        )


def _of_array(vectors: Vectors, like: np.ndarray) -> Tensor:
    """Return the vectors of identities [d], [n, d] or codes [n_styles, 512], [n, n_styles, 512]."""
    dimensions = 2 if vectors.by == "identity" else 3
    if like.ndim == dimensions - 1:
        like = like[None]
    if like.ndim != dimensions or not np.isfinite(like).all():
        expected = "[n, d]" if vectors.by == "identity" else "[n, n_styles, 512]"
        raise RequestError(
            f"by {vectors.by} takes finite numbers {expected}, not an array {list(like.shape)}"
        )
    if vectors.by == "identity":
        return vectors.of_identities(like)
    return vectors.of_codes(torch.tensor(like))


class _Candidates:
    """Collects the `most` most similar faces of some queries, block after block."""

    def __init__(self, queries: Tensor, most: int) -> None:
        self.queries, self.most = queries, most
        self.similarities = queries.new_empty(len(queries), 0)
        self.ids = np.empty((len(queries), 0), object)

    def add(self, block: Block) -> None:
        """Compare the queries with a block."""
        _check_length(block, self.queries)
        count = min(self.most, len(block.ids))
        values, places = (self.queries @ block.vectors.T).topk(count, dim=1)
        ids = _taken(block.ids, places)
        merged = torch.cat([self.similarities, values], dim=1)
        self.similarities, order = merged.topk(min(self.most, merged.shape[1]), dim=1)
        self.ids = np.take_along_axis(
            np.concatenate([self.ids, ids], axis=1), order.cpu().numpy(), axis=1
        )

    def rows(self) -> list[list[Neighbour]]:
        """Return the candidates of each query, the most similar first."""
        similarities = self.similarities.clamp(-1, 1).cpu().numpy()
        return [
            sorted(
                map(Neighbour, ids, map(float, values)), key=lambda n: (-n.similarity, n.image_id)
            )
            for ids, values in zip(self.ids, similarities, strict=True)
        ]


def _taken(ids: pa.Array, places: Tensor) -> np.ndarray:
    """Return the ids at `places` [q, k] as an array of texts of this shape."""
    flat = ids.take(pa.array(places.flatten().cpu().numpy())).to_numpy(zero_copy_only=False)
    return np.asarray(flat, object).reshape(places.shape)
