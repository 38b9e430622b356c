"""Nearest faces of some faces: exact, in one pass over a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from pipeline.errors import RequestError
from pipeline.search.vectors import Block, Vectors

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
    names: Sequence[str | None] = (),  # of the queries; a face is no neighbour of itself
) -> list[list[Neighbour]]:
    """Return the `k` most similar faces of each query, the most similar first, equal ones by id.

    Exact: every face is compared. There are fewer where the selection has fewer faces. Memory holds
    a block of vectors and the candidates. Raises `RequestError` if the queries have another length.
    """
    names = list(names) or [None] * len(queries)
    if len(names) != len(queries):
        raise RequestError(f"{len(queries)} queries have {len(names)} names")
    found = [_Candidates(part, k + 1) for part in queries.split(_QUERIES_AT_ONCE)]
    for block in vectors.blocks():
        for candidates in found:
            candidates.add(block)
    rows = [row for candidates in found for row in candidates.rows()]
    return [
        [neighbour for neighbour in row if neighbour.image_id != name][:k]
        for row, name in zip(rows, names, strict=True)
    ]


class _Candidates:
    """The `most` most similar faces of some queries, among the blocks so far."""

    def __init__(self, queries: Tensor, most: int) -> None:
        self.queries, self.most = queries, most
        self.similarities = queries.new_empty(len(queries), 0)
        self.ids = np.empty((len(queries), 0), object)

    def add(self, block: Block) -> None:
        """Compare the queries with a block."""
        if block.vectors.shape[1] != self.queries.shape[1]:
            raise RequestError(
                f"the queries have {self.queries.shape[1]} numbers, the table's vectors "
                f"{block.vectors.shape[1]}: they are of another network"
            )
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
