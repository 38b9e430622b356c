"""Part files that came beside a committed shard after all, and their removal.

A put that was in flight when its driver died, or a writer that was killed between its put and the
look at the manifest, may land under a number that the commit of another state or part size does
not have: faces that readers would find twice. Only numbers tell, and those stand in the index.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
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
    """What is late beside the shards that were committed when a run began.

    Found by listing the names of all part files, of which there are two for a few hundred images: a
    thread does that while the run is at work.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._stopped = threading.Event()
        self._found: list[Future[dict[str, int]]] = []

    def look_beside(self, committed: CommittedShards) -> None:
        """Begin to look."""
        pool = ThreadPoolExecutor(2, thread_name_prefix="late-parts")
        self._found = [pool.submit(self._look, kind, committed) for kind in (LATENTS, REJECTS)]
        pool.shutdown(wait=False)

    def remove(self) -> None:
        """Wait until all are found, and remove them; not while the run still writes parts.

        Raises `StorageError` where that fails: the next run finds them again.
        """
        suspects: dict[str, int] = {}
        for found in self._found:
            for shard_id, part in found.result().items():
                suspects[shard_id] = max(part, suspects.get(shard_id, 0))
        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(lambda one: _remove(self.store, *one), suspects.items()))
        self._found.clear()

    def stop(self) -> None:
        """Look no further."""
        self._stopped.set()

    def _look(self, kind: str, committed: CommittedShards) -> dict[str, int]:
        """The highest part of each shard that has one too many, or may have as no index tells."""
        highest: dict[str, int] = {}
        listing = self._parts(kind)
        while not self._stopped.is_set() and (batch := list(islice(listing, _BATCH))):
            shards, parts = zip(*batch, strict=True)
            counts = committed.part_counts(shards)
            for row in np.flatnonzero(parts >= counts):
                shard_id, part = batch[row]
                if counts[row] >= 0 or committed.unindexed_etag(shard_id) is not None:
                    highest[shard_id] = max(part, highest.get(shard_id, 0))
        return highest

    def _parts(self, kind: str) -> Iterator[tuple[str, int]]:
        return filter(None, map(parse_part_name, self.store.each_name(f"{kind}/")))


def _remove(store: Store, shard_id: str, highest: int) -> None:
    """Remove the parts that the shard's manifest, as it is at this moment, does not have.

    Nothing where there is no manifest: another run is at work on the shard.
    """
    if not store.exists(manifest_name(shard_id)):
        return
    count = len(read_manifest(store, shard_id).parts)
    if highest >= count:
        remove_parts_from(store, shard_id, count)
