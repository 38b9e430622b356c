"""Find and delete orphaned part files: files that readers see but that no commit owns.

* Late parts. A part may be stored after another run has committed the shard in another state or
  with another part size: its write was in flight when the driver died, or its writer was killed
  after the write and before its check of the manifest. If the commit has no part of this number,
  readers see its faces twice.
* Parts of a shard that was removed from the input before it was committed.
* Slices of a folder that now has fewer files. The remaining files are in earlier slices too.
"""

from __future__ import annotations

import math
import threading
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np

from pipeline.errors import StorageError
from pipeline.storage import ObjectInfo, Shard, Store, slice_id
from pipeline.table.part_files import infos_of, remove_parts_from, remove_unowned_parts
from pipeline.table.parts import LATENTS, REJECTS, parse_part_name
from pipeline.table.shard_index import CommittedShards
from pipeline.table.shard_records import manifest_name, read_shard_record

_BATCH = 4096
_THREADS = 16

_Infos = Mapping[str, ObjectInfo]


class Orphans:
    """Orphans of one run: searched for when it starts, deleted when it ends.

    Two threads list the names of all part files while the run works, because there are two files
    for every few hundred images. Memory: 8 bytes per shard of the input.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        # Start of the run by the storage's clock. A later file of a shard that this run does not
        # have belongs to another run, over a newer input.
        self.began = math.inf
        self._stopped = threading.Event()
        self._committed: CommittedShards | None = None
        self._scans: list[_Scan] = []
        self._parts: dict[str, int] = {}  # part counts of committed shards without an index row
        self._input = array("q")  # hashes of shard ids
        self._slices = 0

    def start(self, committed: CommittedShards) -> None:
        """Start the threads that list the part files."""
        self._committed = committed
        kinds = (LATENTS, REJECTS)
        self._scans = [_Scan(self.store, kind, committed, self._stopped) for kind in kinds]
        for scan in self._scans:
            scan.start()

    def add_part_count(self, shard_id: str, count: int) -> None:
        """Record the part count of an unindexed manifest, so that it is not read again."""
        self._parts[shard_id] = count

    def add_input(self, shard: Shard) -> None:
        """Record that the shard belongs to the input."""
        self._input.append(hash(shard.shard_id))
        self._slices += shard.is_slice

    def remove(self, *, whole_input: bool) -> int:
        """Delete the orphans once the run has stopped writing; return the number of files.

        Shards that were removed from the input are deleted only with `whole_input`: all shards of
        the input were passed to `add_input`. Raises `StorageError` if the storage fails, also if it
        failed while listing: the next run finds the same orphans.
        """
        late: dict[str, int] = {}
        still_open: set[str] = set()
        for scan in self._scans:
            highest, uncommitted = scan.result()
            still_open |= uncommitted
            for shard_id, part in highest.items():
                late[shard_id] = max(part, late.get(shard_id, 0))
        removed = self._each(
            self._remove_late,
            [shard_id for shard_id, part in late.items() if part >= self._parts.get(shard_id, 0)],
        )
        if whole_input and self._committed:
            absent = self._not_in_input(sorted(still_open))
            removed += self._each(self._remove_uncommitted, absent)
            slices = [slice_id(n) for n in self._committed.slices if n >= self._slices]
            removed += self._each(self._remove_committed, slices)
        self._scans = []
        return removed

    def _not_in_input(self, shard_ids: list[str]) -> list[str]:
        hashes = np.array([hash(shard_id) for shard_id in shard_ids], np.int64)
        in_input = np.isin(hashes, np.frombuffer(self._input, np.int64))
        return [shard_id for shard_id, is_in in zip(shard_ids, in_input, strict=True) if not is_in]

    def stop(self) -> None:
        """Stop the threads that list."""
        self._stopped.set()

    def _each(self, remove: Callable[[str, _Infos], int], shard_ids: Sequence[str]) -> int:
        removed = 0
        with ThreadPoolExecutor(_THREADS) as pool:
            for start in range(0, len(shard_ids), _BATCH):
                batch = shard_ids[start : start + _BATCH]
                removed += sum(pool.map(remove, batch, infos_of(self.store, batch)))
        return removed

    def _remove_late(self, shard_id: str, files: _Infos) -> int:
        """Remove the parts that the shard's current manifest does not have.

        Without a manifest nothing is removed: another run is processing the shard.
        """
        if not self.store.exists(manifest_name(shard_id)):
            return 0
        return remove_unowned_parts(self.store, read_shard_record(self.store, shard_id), files)

    def _remove_uncommitted(self, shard_id: str, files: _Infos) -> int:
        """Remove an uncommitted shard unless another run has worked on it since this one began."""
        newest = max((info.modified for info in files.values()), default=0)
        if newest > self.began or self.store.exists(manifest_name(shard_id)):
            return 0
        return self._remove_all(shard_id, files)

    def _remove_committed(self, shard_id: str, files: _Infos) -> int:
        """Remove a committed shard: the manifest first, so that no commit lacks its parts."""
        self.store.remove(manifest_name(shard_id))
        return self._remove_all(shard_id, files)

    def _remove_all(self, shard_id: str, files: _Infos) -> int:
        removed = remove_parts_from(self.store, files, 0)
        if removed:
            # A manifest written between the listing and the removal names files that are deleted.
            self.store.remove(manifest_name(shard_id))
        return removed


class _Scan(threading.Thread):
    """Thread that lists all files of one kind; a daemon, so that the process can end without it."""

    def __init__(
        self, store: Store, kind: str, committed: CommittedShards, stopped: threading.Event
    ) -> None:
        super().__init__(name=f"orphans-{kind}", daemon=True)
        self.store, self.kind, self.committed = store, kind, committed
        self.stopped = stopped
        self._result: tuple[dict[str, int], set[str]] | None = None

    def run(self) -> None:
        try:
            self._result = self._list()
        except StorageError:
            self._result = None  # `result` tries again, later

    def result(self) -> tuple[dict[str, int], set[str]]:
        """Return the highest part of each shard with too many parts, and the uncommitted shards.

        The first includes committed shards without an index row, whose part count is unknown here.
        """
        self.join()
        return self._list() if self._result is None else self._result

    def _list(self) -> tuple[dict[str, int], set[str]]:
        highest: dict[str, int] = {}
        still_open: set[str] = set()
        listing = self._parts()
        while not self.stopped.is_set() and (batch := list(islice(listing, _BATCH))):
            shards, parts = zip(*batch, strict=True)
            counts = self.committed.part_counts(shards)
            for row in np.flatnonzero(parts >= counts):
                shard_id, part = batch[row]
                if counts[row] >= 0 or self.committed.unindexed_etag(shard_id) is not None:
                    highest[shard_id] = max(part, highest.get(shard_id, 0))
                else:
                    still_open.add(shard_id)
        return highest, still_open

    def _parts(self) -> Iterator[tuple[str, int]]:
        return filter(None, map(parse_part_name, self.store.each_name(f"{self.kind}/")))
