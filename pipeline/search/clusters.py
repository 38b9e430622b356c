"""Clusters of faces: k-means on unit vectors, seeded, in passes over blocks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import ConfigError, RequestError
from pipeline.search.vectors import Vectors

MOST_ITERATIONS = 50
# Faces, per cluster and in all, that the initial centres are chosen from.
_SAMPLE_PER_CLUSTER, _SAMPLE = 64, 16_384


class Assigned(NamedTuple):
    """Faces of a block: ids, the cluster of each, and the similarity to its centre."""

    ids: pa.Array
    clusters: NDArray[np.int64]
    similarities: NDArray[np.float32]


@dataclass(frozen=True)
class Clusters:
    """Centres of clusters, the largest cluster first."""

    centres: Tensor  # unit vectors [n, d]
    sizes: list[int]  # faces of each
    similarity: float  # mean over all faces to the centre of their cluster
    iterations: int
    converged: bool  # False: the iterations ended first

    def assign(self, vectors: Vectors) -> Iterator[Assigned]:
        """Yield the cluster of every face, block by block."""
        for block in vectors.blocks():
            values, places = (block.vectors @ self.centres.T).max(dim=1)
            similarities = values.clamp(-1, 1).cpu().numpy()
            yield Assigned(block.ids, places.cpu().numpy(), similarities)


def find_clusters(
    vectors: Vectors, count: int, seed: int = 0, most_iterations: int = MOST_ITERATIONS
) -> Clusters:
    """Return `count` clusters by k-means with cosines (Dhillon and Modha 2001).

    The initial centres are chosen by k-means++ from a sample of at most 16,384 faces, or one face
    in each cluster. Ends when no face changes its cluster. The same selection and seed give the
    same clusters on one machine. A cluster that loses all faces takes the face that is farthest
    from its centre. Raises `RequestError` if there are fewer faces than clusters.
    """
    if not -(2**63) <= seed < 2**64:
        raise ConfigError(f"the seed must be a number of 64 bits, got {seed}")
    generator = torch.Generator().manual_seed(seed)
    most = max(count, min(_SAMPLE, count * _SAMPLE_PER_CLUSTER))
    sample = drawn_faces(vectors, most, generator)
    if len(sample) < count:
        raise RequestError(
            f"{len(sample)} faces cannot form {count} clusters: choose fewer clusters, or more "
            "faces"
        )
    centres = _initial(sample, count, generator)
    step = _Step(centres).over(vectors)
    iterations, converged = 1, False
    while not converged and iterations < most_iterations:
        previous, step = step, _Step(step.moved()).over(vectors)
        iterations += 1
        converged = all(map(torch.equal, previous.places, step.places))
    order = torch.argsort(step.counts, descending=True, stable=True)
    final, sizes = step.centres[order.to(centres.device)], step.counts[order].tolist()
    return Clusters(final, sizes, step.similarity, iterations, converged)


class _Step:
    """Iteration of k-means: assigns all faces to `centres` and sums the faces of each."""

    def __init__(self, centres: Tensor) -> None:
        self.centres = centres
        self.sums = torch.zeros_like(centres, dtype=torch.float64)
        self.counts = torch.zeros(len(centres), dtype=torch.int64)
        self.places: list[Tensor] = []
        self._total = 0.0
        self._farthest = centres.new_empty(0, centres.shape[1])
        self._similarities = centres.new_empty(0)  # of the farthest faces to their centres

    def over(self, vectors: Vectors) -> _Step:
        """Assign all faces; return this step."""
        for block in vectors.blocks():
            self._add(block.vectors)
        return self

    def _add(self, vectors: Tensor) -> None:
        values, places = (vectors @ self.centres.T).max(dim=1)
        self.sums += torch.zeros_like(self.centres).index_add_(0, places, vectors)
        self.counts += torch.bincount(places.cpu(), minlength=len(self.centres))
        self.places.append(places.int().cpu())
        self._total += float(values.double().sum())
        self._remember_farthest(vectors, values)

    @property
    def similarity(self) -> float:
        """Mean similarity of the faces to their centres."""
        return self._total / int(self.counts.sum())

    def moved(self) -> Tensor:
        """Return the directions of the sums; the farthest faces for clusters without a face."""
        centres = F.normalize(self.sums, dim=1).to(self.centres)
        empty = (self.counts == 0).nonzero()[:, 0]
        if len(empty):
            centres[empty.to(centres.device)] = self._farthest[: len(empty)]
        return centres

    def _remember_farthest(self, vectors: Tensor, values: Tensor) -> None:
        values, places = values.topk(min(len(self.centres), len(values)), largest=False)
        similarities = torch.cat([self._similarities, values])
        count = min(len(self.centres), len(similarities))
        self._similarities, kept = similarities.topk(count, largest=False)
        self._farthest = torch.cat([self._farthest, vectors[places]])[kept]


def drawn_faces(vectors: Vectors, most: int, generator: torch.Generator) -> Tensor:
    """Return vectors of `most` faces, or of all, drawn without replacement in one pass.

    Those with the smallest random keys.
    """
    rows: list[Tensor] = []
    keys = torch.empty(0)
    for block in vectors.blocks():
        drawn = torch.rand(len(block.vectors), generator=generator)
        together = torch.cat([keys, drawn])
        kept = together.topk(min(most, len(together)), largest=False, sorted=False).indices
        kept = kept.sort().values  # most blocks keep all earlier rows but a handful
        earlier = kept[kept < len(keys)].tolist()
        new = kept[kept >= len(keys)] - len(keys)
        # Rows of their own: a view would hold its whole block.
        rows = [rows[place] for place in earlier] + [
            row.clone() for row in block.vectors[new.to(block.vectors.device)]
        ]
        keys = together[kept]
    return torch.stack(rows) if rows else torch.empty(0, 0)


def _initial(sample: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return `count` rows of the sample by k-means++ (Arthur and Vassilvitskii 2007)."""
    chosen = [int(torch.randint(len(sample), (1,), generator=generator))]
    # Squared distance of unit vectors: 2 - 2 cos.
    distances = (1 - sample @ sample[chosen[0]]).clamp_min(0)
    while len(chosen) < count:
        weights = distances.cpu().double()
        weights[chosen] = 0
        if not weights.sum() > 0:  # all remaining rows equal a chosen one
            weights = torch.ones(len(sample), dtype=torch.float64)
            weights[chosen] = 0
        chosen.append(int(torch.multinomial(weights, 1, generator=generator)))
        distances = torch.minimum(distances, (1 - sample @ sample[chosen[-1]]).clamp_min(0))
    return sample[chosen]
