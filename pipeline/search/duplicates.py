"""Groups of faces that are more similar than a threshold: photos of one person, or near copies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import isqrt
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import RequestError
from pipeline.machine import memory_limit
from pipeline.search.clusters import drawn_faces
from pipeline.search.requests import check_threshold, require_faiss
from pipeline.search.vectors import Vectors

Indices = NDArray[np.int64]

# Rows and columns of similarities that are computed at once: 16 MiB.
_TILE = 2048
_NO_PAIR = -2.0  # below every similarity
# Approximate search: neighbours of a face that are looked at, nearest lists that are searched for
# them, and drawn faces per list that the lists' centres are fitted to.
_NEIGHBOURS, _LISTS_SEARCHED, _DRAWN_PER_LIST = 32, 16, 64
_FEWEST_IN_LISTS = 10_000  # fewer faces are compared pair by pair


class _Rows(NamedTuple):
    """Ids and vectors [n, d] of consecutive faces, the first of which has the number `start`."""

    start: int
    ids: pa.Array
    vectors: Tensor

    @property
    def end(self) -> int:
        return self.start + len(self.vectors)


@dataclass(frozen=True)
class Duplicates:
    """Faces in groups, sorted by group; the groups and their faces in the order of the selection.

    `groups` [m] counts from 0. `similarities` [m] are to the most similar face of the table.
    """

    ids: pa.Array
    groups: Indices
    similarities: NDArray[np.float32]
    rows: int  # compared faces

    @property
    def count(self) -> int:
        """Number of groups."""
        return int(self.groups[-1]) + 1 if len(self.groups) else 0


class Components:
    """Connected components of rows 0..n-1; pairs are added many at a time."""

    def __init__(self) -> None:
        self.parents: Indices = np.empty(0, np.int64)  # each row's smallest row so far

    def grow(self, rows: int) -> None:
        """Add rows up to `rows`, each alone."""
        self.parents = np.concatenate([self.parents, np.arange(len(self.parents), rows)])

    def join(self, first: Indices, second: Indices) -> None:
        """Join the components of first[i] and second[i], for all i."""
        while True:
            left, right = self.parents[first], self.parents[second]
            apart = left != right
            if not apart.any():
                return
            first, second, left, right = first[apart], second[apart], left[apart], right[apart]
            np.minimum.at(self.parents, np.maximum(left, right), np.minimum(left, right))
            self._flatten()

    def _flatten(self) -> None:
        while True:
            roots = self.parents[self.parents]
            if np.array_equal(roots, self.parents):
                return
            self.parents = roots


def find_duplicates(vectors: Vectors, threshold: float) -> Duplicates:
    """Return the groups of faces that a chain of pairs of at least `threshold` connects.

    Exact: every pair is compared, in n²/2 products. Where the vectors take more than
    `Vectors.held_bytes`, that many are in memory, and the table is read once for each such share.
    """
    check_threshold(threshold)
    pairs, ids = _Pairs(threshold, vectors.device), []
    for share in _shares(vectors):
        ids += [rows.ids for rows in share]
        pairs.grow(share[-1].end)
        for tile in _tiles(vectors):
            if tile.start >= share[-1].end:
                break
            for rows in share:
                pairs.compare(tile, rows)
    all_ids = pa.concat_arrays(ids) if ids else pa.array([], pa.string())
    return _grouped(pairs.components.parents, all_ids, pairs.best.cpu().numpy())


def find_most_duplicates(vectors: Vectors, threshold: float) -> Duplicates:
    """Return the groups of `find_duplicates` up to pairs that an inverted file misses.

    The faces lie in √n lists around centres. Each face is compared with those of the nearest lists,
    and joined to its 32 nearest neighbours of at least `threshold`: about n^1.5 products by faiss,
    whose index holds all vectors in memory. Every pair that is found is right. Up to 10,000 faces
    it is `find_duplicates`. Raises `RequestError` without faiss, and if the vectors take more than
    half of the memory.
    """
    check_threshold(threshold)
    require_faiss()
    faces = vectors.selection.count()
    if faces < _FEWEST_IN_LISTS:
        return find_duplicates(vectors, threshold)
    drawn = drawn_faces(vectors, _DRAWN_PER_LIST * isqrt(faces), torch.Generator().manual_seed(0))
    if vectors.faces < _FEWEST_IN_LISTS:  # the others have no vector
        return find_duplicates(vectors, threshold)
    index, ids = _inverted_file(vectors, drawn)
    pairs, start = _Pairs(threshold, "cpu"), 0
    pairs.grow(index.ntotal)
    for block in vectors.blocks():
        squares, found = index.search(block.vectors.cpu().numpy(), _NEIGHBOURS)
        similarities = 1 - squares / 2
        rows = np.arange(start, start + len(found))
        is_near = (similarities >= threshold) & (found >= 0) & (found != rows[:, None])
        place, _ = is_near.nonzero()
        chosen = (rows[place], found[is_near], similarities[is_near])
        pairs.add(*map(torch.from_numpy, chosen))
        start += len(found)
    return _grouped(pairs.components.parents, ids, pairs.best.numpy())


def _inverted_file(vectors: Vectors, sample: Tensor) -> tuple[Any, pa.Array]:
    """Return an index of faiss of all vectors, in lists by centres of `sample`, and their ids."""
    import faiss  # an extra

    size = vectors.faces * sample.shape[1] * 4
    if size > memory_limit() // 2:
        raise RequestError(
            f"the vectors of {vectors.faces:,} faces take {size / 1e9:.1f} GB, more than half of "
            "the memory: choose fewer with --where, or search --by identity"
        )
    index = faiss.IndexIVFFlat(
        faiss.IndexFlatL2(sample.shape[1]), sample.shape[1], isqrt(vectors.faces)
    )
    index.nprobe = _LISTS_SEARCHED
    index.train(sample.cpu().numpy())
    ids = []
    for block in vectors.blocks():
        index.add(block.vectors.cpu().numpy())
        ids.append(block.ids)
    return index, pa.concat_arrays(ids)


def _shares(vectors: Vectors) -> Iterator[list[_Rows]]:
    """Yield the tiles in shares that fit in memory."""
    share: list[_Rows] = []
    size = 0
    for tile in _tiles(vectors):
        if share and size + tile.vectors.nbytes > vectors.held_bytes:
            yield share
            share, size = [], 0
        share.append(tile)
        size += tile.vectors.nbytes
    if share:
        yield share


def _tiles(vectors: Vectors) -> Iterator[_Rows]:
    start = 0
    for block in vectors.blocks():
        for first in range(0, len(block.ids), _TILE):
            part = block.vectors[first : first + _TILE]
            yield _Rows(start, block.ids.slice(first, _TILE), part)
            start += len(part)


class _Pairs:
    """Components of the pairs of at least `threshold`, and the largest similarity of their rows."""

    def __init__(self, threshold: float, device: str) -> None:
        self.threshold, self.components = threshold, Components()
        self.best = torch.empty(0, device=device)

    def grow(self, rows: int) -> None:
        """Add rows up to `rows`."""
        self.components.grow(rows)
        added = self.best.new_full([rows - len(self.best)], _NO_PAIR)
        self.best = torch.cat([self.best, added])

    def compare(self, tile: _Rows, other: _Rows) -> None:
        """Compare each row of a tile with the later rows of another tile."""
        if other.end <= tile.start:
            return
        similarities = tile.vectors @ other.vectors.T
        if other.start < tile.end:  # some pairs are a row and itself, or come in both orders
            before = torch.arange(tile.start, tile.end, device=similarities.device)
            after = torch.arange(other.start, other.end, device=similarities.device)
            similarities.masked_fill_(after[None] <= before[:, None], _NO_PAIR)
        near = (similarities.amax(dim=1) >= self.threshold).nonzero()[:, 0]
        if len(near):
            near_rows = similarities[near]
            first, second = (near_rows >= self.threshold).nonzero(as_tuple=True)
            values, first = near_rows[first, second], near[first] + tile.start
            self.add(first, second + other.start, values)

    def add(self, first: Tensor, second: Tensor, similarities: Tensor) -> None:
        """Join the rows first[i] and second[i]."""
        for rows in (first, second):
            self.best.scatter_reduce_(0, rows, similarities, "amax")
        self.components.join(first.cpu().numpy(), second.cpu().numpy())


def _grouped(parents: Indices, ids: pa.Array, best: NDArray[np.float32]) -> Duplicates:
    """Return the rows of components of two or more rows."""
    sizes = np.bincount(parents, minlength=len(parents))
    chosen = np.flatnonzero(sizes[parents] > 1)
    order = chosen[np.argsort(parents[chosen], kind="stable")]
    _, groups = np.unique(parents[order], return_inverse=True)
    similarities = best[order].clip(-1, 1)
    return Duplicates(ids.take(pa.array(order)), groups, similarities, len(parents))
