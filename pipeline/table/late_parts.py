"""Part files that came beside a committed shard after all, and their removal.

A put that was in flight when its driver died, or a writer that was killed between its put and the
look at the manifest, may land under a number that the commit of another state or part size does
not have: faces that readers would find twice. Only numbers tell, and those stand in the index.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np

from pipeline.storage import Store
from pipeline.table.committed import CommittedShards
from pipeline.table.manifests import manifest_name, read_manifest
from pipeline.table.part_files import remove_parts_from
from pipeline.table.parts import LATENTS, REJECTS, parse_part_name

_BATCH = 4096
_THREADS = 16


class LateParts:
    """The late parts of all committed shards, from one listing of the names of part files.

    Shards of which the index tells the number of parts are cleared at once. Of the others the
    highest number is held, until `check` or `check_rest` learns from their manifests.
    """

    def __init__(self, store: Store, committed: CommittedShards) -> None:
        self.store = store
        self._highest: dict[str, int] = {}
        with ThreadPoolExecutor(2) as pool:
            kinds = pool.map(lambda kind: self._listed(kind, committed), (LATENTS, REJECTS))
            known = [(found, highest) for found, highest in kinds]
        for found, highest in known:
            for shard_id in found:
                _remove(store, shard_id)
            for shard_id, part in highest.items():
                self._highest[shard_id] = max(part, self._highest.get(shard_id, 0))

    def _listed(self, kind: str, committed: CommittedShards) -> tuple[set[str], dict[str, int]]:
        """Shards that seem to have late parts; the highest parts of those not in the index."""
        late: set[str] = set()
        highest: dict[str, int] = {}
        listing = self._parts(kind)
        while batch := list(islice(listing, _BATCH)):
            shards, parts = zip(*batch, strict=True)
            counts = committed.part_counts(shards)
            late.update(shards[row] for row in np.flatnonzero((counts >= 0) & (parts >= counts)))
            for row in np.flatnonzero(counts < 0):
                shard_id, part = batch[row]
                if committed.unindexed_etag(shard_id) is not None:
                    highest[shard_id] = max(part, highest.get(shard_id, 0))
        return late, highest

    def _parts(self, kind: str) -> Iterator[tuple[str, int]]:
        return filter(None, map(parse_part_name, self.store.each_name(f"{kind}/")))

    def check(self, shard_id: str, parts: int) -> None:
        """Remove what is late of a shard whose manifest names so many parts."""
        if self._highest.pop(shard_id, -1) >= parts:
            _remove(self.store, shard_id)

    def check_rest(self) -> None:
        """`check` the shards that have gone from the input, by their manifests."""
        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(lambda one: _remove(self.store, *one), self._highest.items()))
        self._highest.clear()


def _remove(store: Store, shard_id: str, highest: int | None = None) -> None:
    """Remove the parts that the shard's manifest, as it is at this moment, does not have.

    Nothing where there is no manifest: another run is at work on the shard.
    """
    if not store.exists(manifest_name(shard_id)):
        return
    count = len(read_manifest(store, shard_id).parts)
    if highest is None or highest >= count:
        remove_parts_from(store, shard_id, count)
