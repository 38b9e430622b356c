"""Find and delete orphaned part files: files that readers see but that no commit owns.

* Late parts: a put that was in flight when its driver died, or a writer that was killed between its
  put and its check of the manifest, may land beside a commit of another state or part size under a
  number that it does not have. Its faces are there twice.
* Parts of a shard that left the input before it was committed.
* Slices of a folder that has fewer files than it had: the files that are left stand in the slices
  before them too.
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
from pipeline.table.part_files import infos_of, remove_parts_beside, remove_parts_from
from pipeline.table.parts import LATENTS, REJECTS, parse_part_name
from pipeline.table.shard_index import CommittedShards
from pipeline.table.shard_records import manifest_name, read_shard_record

_BATCH = 4096
_THREADS = 16

_Infos = Mapping[str, ObjectInfo]


class Orphans:
    """The orphans that a run finds when it begins and removes when it ends.

    Of part files there are two for a few hundred images: threads list their names while the run is
    at work. Of each shard of the input 8 bytes are held.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        # When the run began, by the storage's clock. What was put later into a shard that is none
        # of this run's is the work of another run, of a newer input.
        self.began = math.inf
        self._stopped = threading.Event()
        self._committed: CommittedShards | None = None
        self._scans: list[_Scan] = []
        self._parts: dict[str, int] = {}  # of committed shards that stand in no index
        self._input = array("q")  # hashes of ids
        self._slices = 0

    def start(self, committed: CommittedShards) -> None:
        """Start to list the part files."""
        self._committed = committed
        kinds = (LATENTS, REJECTS)
        self._scans = [_Scan(self.store, kind, committed, self._stopped) for kind in kinds]
        for scan in self._scans:
            scan.start()

    def has_parts(self, shard_id: str, count: int) -> None:
        """Note what the manifest of a shard says that no index knows: it need not be read again."""
        self._parts[shard_id] = count

    def is_input(self, shard: Shard) -> None:
        """Note a shard of the input."""
        self._input.append(hash(shard.shard_id))
        self._slices += shard.is_slice

    def remove(self, *, whole_input: bool) -> int:
        """Wait until all are found, and remove them; not while the run still writes. How many.

        What left the input is known only if the `whole_input` is noted. Raises `StorageError`
        where storage fails, again if it did before: the next run finds them too.
        """
        late: dict[str, int] = {}
        still_open: set[str] = set()
        for scan in self._scans:
            found, unknown = scan.result()
            still_open |= unknown
            for shard_id, part in found.items():
                late[shard_id] = max(part, late.get(shard_id, 0))
        removed = self._each(
            self._remove_late,
            [one for one, part in late.items() if part >= self._parts.get(one, 0)],
        )
        if whole_input and self._committed:
            left = self._not_in_the_input(sorted(still_open))
            removed += self._each(self._remove_uncommitted, left)
            slices = [slice_id(n) for n in self._committed.slices if n >= self._slices]
            removed += self._each(self._remove_committed, slices)
        self._scans = []
        return removed

    def _not_in_the_input(self, shard_ids: list[str]) -> list[str]:
        hashes = np.array([hash(one) for one in shard_ids], np.int64)
        ours = np.isin(hashes, np.frombuffer(self._input, np.int64))
        return [one for one, is_ours in zip(shard_ids, ours, strict=True) if not is_ours]

    def stop(self) -> None:
        """Stop listing."""
        self._stopped.set()

    def _each(self, remove: Callable[[str, _Infos], int], shard_ids: Sequence[str]) -> int:
        removed = 0
        with ThreadPoolExecutor(_THREADS) as pool:
            for start in range(0, len(shard_ids), _BATCH):
                batch = shard_ids[start : start + _BATCH]
                removed += sum(pool.map(remove, batch, infos_of(self.store, batch)))
        return removed

    def _remove_late(self, shard_id: str, files: _Infos) -> int:
        """Remove the parts that the shard's manifest, as it is at this moment, does not have.

        Nothing where there is no manifest: another run is at work on the shard.
        """
        if not self.store.exists(manifest_name(shard_id)):
            return 0
        return remove_parts_beside(self.store, read_shard_record(self.store, shard_id), files)

    def _remove_uncommitted(self, shard_id: str, files: _Infos) -> int:
        """Nothing where another run, of an input that has the shard, is at work on it or was."""
        newest = max((info.modified for info in files.values()), default=0)
        if newest > self.began or self.store.exists(manifest_name(shard_id)):
            return 0
        return self._remove_all(shard_id, files)

    def _remove_committed(self, shard_id: str, files: _Infos) -> int:
        """The manifest first, so that no commit stands without its parts."""
        self.store.remove(manifest_name(shard_id))
        return self._remove_all(shard_id, files)

    def _remove_all(self, shard_id: str, files: _Infos) -> int:
        removed = remove_parts_from(self.store, files, 0)
        if removed:
            # One that was put between the listing and the removal names files that are gone.
            self.store.remove(manifest_name(shard_id))
        return removed


class _Scan(threading.Thread):
    """One listing of all names of a kind; a daemon, so that no end waits for a slow one."""

    def __init__(
        self, store: Store, kind: str, committed: CommittedShards, stopped: threading.Event
    ) -> None:
        super().__init__(name=f"orphans-{kind}", daemon=True)
        self.store, self.kind, self.committed = store, kind, committed
        self.stopped = stopped
        self._found: tuple[dict[str, int], set[str]] | None = None

    def run(self) -> None:
        try:
            self._found = self._list()
        except StorageError:
            self._found = None  # `result` lists again, when the storage may be back

    def result(self) -> tuple[dict[str, int], set[str]]:
        """The highest part of each committed shard that has one too many, or that may have, as no
        index tells; the shards that are not committed.
        """
        self.join()
        return self._list() if self._found is None else self._found

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
