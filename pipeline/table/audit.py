"""A sample of the index held against the manifests, so that its lines need not all be believed.

A line has its manifest's etag, which anyone can copy beside false numbers. Reading all manifests
would cost a request for each shard, so some lines are drawn, in ways that a forger cannot foresee:

* `EACH` lines, every one as likely as the others: of k false lines among n all are missed with a
  probability of about (1 - k/n) ** EACH, for one in a hundred that is 28 %, for five 0.1 %.
* For each number that is added up, `EACH` lines, each as likely as its share in the sum: a number
  that false lines raise so that they hold a share f of the sum is missed with (1 - f) ** EACH. A
  line that makes up a table's faces, or the mean of a metric, is found.

For the card of a table of up to `WHOLE` shards every line is compared: drawing by fifteen numbers
may read nearly as many manifests.

Where a drawn line is false, no line of the index is believed. `verify` compares every line.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import PipelineError, TableError
from pipeline.storage import Store
from pipeline.table.index import ShardEntry
from pipeline.table.manifests import manifest_name, read_manifest

EACH = 128
WHOLE = 2048
_THREADS = 16
_BATCH = 4096
_LARGEST = 1e30  # of a number in a line, whoever wrote it

_Numbers = npt.NDArray[np.float64]


class Audit:
    """Draws lines as they pass by, some thousand at a time; holds those that are drawn."""

    def __init__(self, *, sums: bool = False, each: int = EACH, whole: int = 0) -> None:
        """Lines alike; with `sums` also by their share in every number that is added up.

        Of up to `whole` lines all are drawn.
        """
        self.sums, self.each = sums, each
        self._drawn: list[list[tuple[float, int, ShardEntry]]] = []
        self._random = np.random.default_rng()
        self._count = 0
        self._all: list[ShardEntry] | None = []  # while there are few
        self._whole = whole

    def add(self, entries: Sequence[ShardEntry]) -> None:
        """Let lines pass by.

        Of each column of weights those stay with the largest log(u) / weight, u uniform in (0, 1):
        a draw without replacement (Efraimidis and Spirakis, 2006).
        """
        if not entries:
            return
        if self._all is not None:
            short = len(self._all) + len(entries) <= self._whole
            self._all = [*self._all, *entries] if short else None
        weights = self._weights(entries)
        with np.errstate(divide="ignore"):
            keys = np.log(self._random.random(weights.shape)) / weights
        self._drawn = self._drawn or [[] for _ in range(weights.shape[1])]
        for column, drawn in enumerate(self._drawn):
            best = np.argsort(-keys[:, column])[: self.each]
            drawn += [
                (float(keys[row, column]), self._count + int(row), entries[row])
                for row in best
                if weights[row, column] > 0
            ]
            drawn.sort(reverse=True, key=lambda item: item[:2])
            del drawn[self.each :]
        self._count += len(entries)

    def watched(self, entries: Iterable[ShardEntry]) -> Iterator[ShardEntry]:
        """The same lines, of which some are drawn."""
        source = iter(entries)
        while batch := list(islice(source, _BATCH)):
            self.add(batch)
            yield from batch

    def lies(self, store: Store) -> bool:
        """Return whether a drawn line is not what its manifest says.

        One whose manifest was written anew or removed since it was listed is passed over.
        """
        drawn = {number: entry for items in self._drawn for _, number, entry in items}
        if self._all is not None:
            drawn = dict(enumerate(self._all))
        with ThreadPoolExecutor(_THREADS) as pool:
            return not all(pool.map(lambda entry: _is_true(store, entry), drawn.values()))

    def _weights(self, entries: Sequence[ShardEntry]) -> _Numbers:
        """What a line is drawn by: [lines, columns]; the first column is the same for all."""
        if not self.sums:
            return np.ones((len(entries), 1))
        rows = [[1, one.samples, one.faces, one.rejects, *_figures(one.figures)] for one in entries]
        return np.minimum(np.abs(np.array(rows, np.float64)), _LARGEST)


def _figures(text: str) -> list[float]:
    """The numbers of a line's figures that are added up, at most steps; 0 for what is none."""
    try:
        facts: dict[str, Any] = json.loads(text)
        reasons = sum(facts["reasons"].values())
        by_metric = [
            max(map(abs, facts[part].get(name, [0])), default=0)
            for part in ("sums", "counts")
            for name in ("l2", "psnr", "lpips", "id_similarity", "residual_norm")
        ]
        return [float(one) for one in (facts["identified"], reasons, *by_metric)]
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return [_LARGEST] * 12  # of no kind: drawn first


def _is_true(store: Store, entry: ShardEntry) -> bool:
    try:
        made = ShardEntry.of(read_manifest(store, entry.shard), entry.manifest_etag)
    except TableError:
        return False
    except PipelineError:
        if store.exists(manifest_name(entry.shard)):
            raise
        return True
    if made == entry:
        return True
    return store.info(manifest_name(entry.shard)).etag != entry.manifest_etag


def forget_index(store: Store) -> None:
    """Remove the index of shards, which a run makes anew from the manifests."""
    with suppress(PipelineError):
        for name in store.names("_index/shards/"):
            store.remove(name)
