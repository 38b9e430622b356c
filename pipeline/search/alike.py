"""Faces of a selection that are at least as similar to a query as a threshold."""

from __future__ import annotations

from torch import Tensor

from pipeline.errors import RequestError
from pipeline.search.vectors import Vectors


def faces_above(vectors: Vectors, queries: Tensor, threshold: float) -> dict[str, float]:
    """Return the similarity of each face to the nearest of `queries` [q, d], the largest first.

    Only similarities of `threshold` or more; equal ones by id. Exact, in one pass that holds a
    block of vectors. Raises `RequestError` if the queries have another length than the vectors.
    """
    found: dict[str, float] = {}
    for block in vectors.blocks():
        if block.vectors.shape[1] != queries.shape[1]:
            raise RequestError(
                f"the queries have {queries.shape[1]} numbers, the table's vectors "
                f"{block.vectors.shape[1]}: they are of another network"
            )
        nearest = (block.vectors @ queries.T).amax(dim=1).clamp(-1, 1)
        places = (nearest >= threshold).nonzero().flatten().tolist()
        ids = block.ids.take(places).to_pylist()
        found.update(zip(ids, nearest[places].tolist(), strict=True))
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))
