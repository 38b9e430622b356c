"""Compare a random sample of the index with the manifests.

A row of the index holds the etag of its manifest. Anyone who writes to the storage can copy that
etag into a row with false numbers. Comparing all rows would take one request per shard, so rows are
drawn at random, in ways that a forger cannot foresee:

* `EACH` rows, all with the same probability. If k of n rows are false, all of them are missed with
  a probability of about (1 - k/n) ** EACH: 28 % for one row in a hundred, 0.1 % for five.
* For each number that is summed, `EACH` rows with a probability proportional to the number. If
  false rows hold a share f of the sum, they are missed with a probability of (1 - f) ** EACH. So a
  row that invents most of a table's faces, or moves the mean of a metric, is detected.

For the card of a table of up to `WHOLE` shards every row is compared, because drawing by fifteen
numbers may read nearly as many manifests.

If a drawn row is false, the whole index is ignored. `verify` compares every row.
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
_MAX_WEIGHT = 1e30  # a row that another program wrote may hold any number

_Numbers = npt.NDArray[np.float64]


class Audit:
    """Random sample of the index rows that are passed to it."""

    def __init__(self, *, sums: bool = False, each: int = EACH, whole: int = 0) -> None:
        """Draw rows with equal probability; with `sums` also by their share in each summed number.

        If there are at most `whole` rows, all are drawn.
        """
        self.sums, self.each = sums, each
        self._drawn: list[list[tuple[float, int, ShardRecord]]] = []
        self._random = np.random.default_rng()
        self._count = 0
        self._all: list[ShardRecord] | None = []  # None after more than `whole` rows
        self._whole = whole

    def add(self, records: Sequence[ShardRecord]) -> None:
        """Draw from these rows too.

        For each column of weights, keep the rows with the largest log(u) / weight, u uniform in
        (0, 1): sampling without replacement (Efraimidis and Spirakis, 2006).
        """
        if not records:
            return
        if self._all is not None:
            fits = len(self._all) + len(records) <= self._whole
            self._all = [*self._all, *records] if fits else None
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

    def sample(self, records: Iterable[ShardRecord]) -> Iterator[ShardRecord]:
        """Yield the rows unchanged, and draw from them on the way."""
        source = iter(records)
        while batch := list(islice(source, _BATCH)):
            self.add(batch)
            yield from batch

    def finds_mismatch(self, store: Store) -> bool:
        """Return whether any drawn row differs from its manifest.

        A row is skipped if its manifest was replaced or removed after it was listed.
        """
        drawn = {number: record for items in self._drawn for _, number, record in items}
        if self._all is not None:
            drawn = dict(enumerate(self._all))
        with ThreadPoolExecutor(_THREADS) as pool:
            return not all(
                pool.map(lambda record: _matches_manifest(store, record), drawn.values())
            )

    def _weights(self, records: Sequence[ShardRecord]) -> _Numbers:
        """Return the weights of each row: [rows, columns]; the first column is 1 for all rows."""
        if not self.sums:
            return np.ones((len(records), 1))
        rows = [
            [1, record.samples, record.faces, record.rejects, *_figures(record.figures)]
            for record in records
        ]
        return np.minimum(np.abs(np.array(rows, np.float64)), _MAX_WEIGHT)


def _figures(text: str) -> list[float]:
    """Return the summed numbers of a row; for a metric, the largest value of its steps."""
    try:
        facts: dict[str, Any] = json.loads(text)
        reasons = sum(facts["reasons"].values())
        by_metric = [
            max(map(abs, facts[part].get(name, [0])), default=0)
            for part in ("sums", "counts")
            for name in PER_STEP
        ]
        return [float(number) for number in (facts["identified"], reasons, *by_metric)]
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return [_MAX_WEIGHT] * (2 + 2 * len(PER_STEP))  # damaged rows are drawn first


def _matches_manifest(store: Store, record: ShardRecord) -> bool:
    """Return whether a row of the index says what its manifest says."""
    try:
        stored = read_shard_record(store, record.shard)
    except TableError:
        return False
    except PipelineError:
        if store.exists(manifest_name(record.shard)):
            raise
        return True
    if stored.to_row() | {"manifest_etag": record.manifest_etag} == record.to_row():
        return True
    return store.info(manifest_name(record.shard)).etag != record.manifest_etag
