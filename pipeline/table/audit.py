"""Compare a random sample of the index with the manifests.

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
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import PipelineError, TableError
from pipeline.metrics.registry import PER_STEP
from pipeline.storage import Store
from pipeline.table.shard_records import ShardRecord, manifest_name, read_shard_record

EACH = 128
WHOLE = 2048
_THREADS = 16
_BATCH = 4096
_LARGEST = 1e30  # of a number in a line, whoever wrote it

_Numbers = npt.NDArray[np.float64]


class Audit:
    """Draws rows of the index as they pass by, and holds those that are drawn."""

    def __init__(self, *, sums: bool = False, each: int = EACH, whole: int = 0) -> None:
        """Draw all rows alike; with `sums` also by their share in every number that is summed.

        Of up to `whole` rows all are drawn.
        """
        self.sums, self.each = sums, each
        self._drawn: list[list[tuple[float, int, ShardRecord]]] = []
        self._random = np.random.default_rng()
        self._count = 0
        self._all: list[ShardRecord] | None = []  # while there are few
        self._whole = whole

    def add(self, records: Sequence[ShardRecord]) -> None:
        """Let rows pass by.

        Of each column of weights those stay with the largest log(u) / weight, u uniform in (0, 1):
        a draw without replacement (Efraimidis and Spirakis, 2006).
        """
        if not records:
            return
        if self._all is not None:
            short = len(self._all) + len(records) <= self._whole
            self._all = [*self._all, *records] if short else None
        weights = self._weights(records)
        with np.errstate(divide="ignore"):
            keys = np.log(self._random.random(weights.shape)) / weights
        self._drawn = self._drawn or [[] for _ in range(weights.shape[1])]
        for column, drawn in enumerate(self._drawn):
            best = np.argsort(-keys[:, column])[: self.each]
            drawn += [
                (float(keys[row, column]), self._count + int(row), records[row])
                for row in best
                if weights[row, column] > 0
            ]
            drawn.sort(reverse=True, key=lambda item: item[:2])
            del drawn[self.each :]
        self._count += len(records)

    def watched(self, records: Iterable[ShardRecord]) -> Iterator[ShardRecord]:
        """Yield the same rows, of which some are drawn."""
        source = iter(records)
        while batch := list(islice(source, _BATCH)):
            self.add(batch)
            yield from batch

    def lies(self, store: Store) -> bool:
        """Return whether a drawn line is not what its manifest says.

        One whose manifest was written anew or removed since it was listed is passed over.
        """
        drawn = {number: record for items in self._drawn for _, number, record in items}
        if self._all is not None:
            drawn = dict(enumerate(self._all))
        with ThreadPoolExecutor(_THREADS) as pool:
            return not all(pool.map(lambda record: _is_true(store, record), drawn.values()))

    def _weights(self, records: Sequence[ShardRecord]) -> _Numbers:
        """Return what a row is drawn by: [rows, columns]; the first column is the same for all."""
        if not self.sums:
            return np.ones((len(records), 1))
        rows = [[1, one.samples, one.faces, one.rejects, *_figures(one.figures)] for one in records]
        return np.minimum(np.abs(np.array(rows, np.float64)), _LARGEST)


def _figures(text: str) -> list[float]:
    """Return the summed numbers of a row, the largest step of each."""
    try:
        facts: dict[str, Any] = json.loads(text)
        reasons = sum(facts["reasons"].values())
        by_metric = [
            max(map(abs, facts[part].get(name, [0])), default=0)
            for part in ("sums", "counts")
            for name in PER_STEP
        ]
        return [float(one) for one in (facts["identified"], reasons, *by_metric)]
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return [_LARGEST] * (2 + 2 * len(PER_STEP))  # damaged: drawn first


def _is_true(store: Store, record: ShardRecord) -> bool:
    try:
        made = read_shard_record(store, record.shard)
    except TableError:
        return False
    except PipelineError:
        if store.exists(manifest_name(record.shard)):
            raise
        return True
    if made.to_row() | {"manifest_etag": record.manifest_etag} == record.to_row():
        return True
    return store.info(manifest_name(record.shard)).etag != record.manifest_etag
