"""Files that readers find and no run comes back to, and their removal.

* Late parts: a put that was in flight when its driver died, or a writer that was killed between its
  put and the look at the manifest, may land beside a commit of another state or part size under a
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
from pipeline.table.committed import CommittedShards
from pipeline.table.manifests import manifest_name, read_manifest
from pipeline.table.part_files import infos_of, remove_parts_beside, remove_parts_from
from pipeline.table.parts import LATENTS, REJECTS, parse_part_name

_BATCH = 4096
_THREADS = 16

_Infos = Mapping[str, ObjectInfo]


class Strays:
    """The strays that a run finds when it begins, which it removes when it is through.

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
        self._looks: list[_Look] = []
        self._parts: dict[str, int] = {}  # of committed shards that stand in no index
        self._input = array("q")  # hashes of ids
        self._slices = 0

    def look_beside(self, committed: CommittedShards) -> None:
        """Begin to look for parts."""
        self._committed = committed
        kinds = (LATENTS, REJECTS)
        self._looks = [_Look(self.store, kind, committed, self._stopped) for kind in kinds]
        for look in self._looks:
            look.start()

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
        for look in self._looks:
            found, unknown = look.result()
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
        self._looks = []
        return removed

    def _not_in_the_input(self, shard_ids: list[str]) -> list[str]:
        hashes = np.array([hash(one) for one in shard_ids], np.int64)
        ours = np.isin(hashes, np.frombuffer(self._input, np.int64))
        return [one for one, is_ours in zip(shard_ids, ours, strict=True) if not is_ours]

    def stop(self) -> None:
        """Look no further."""
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
        return remove_parts_beside(self.store, read_manifest(self.store, shard_id), files)

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
            # One that was put between the look and the removal names files that are gone.
            self.store.remove(manifest_name(shard_id))
        return removed


class _Look(threading.Thread):
    """One listing of all names of a kind; a daemon, so that no end waits for a slow one."""

    def __init__(
        self, store: Store, kind: str, committed: CommittedShards, stopped: threading.Event
    ) -> None:
        super().__init__(name=f"strays-{kind}", daemon=True)
        self.store, self.kind, self.committed = store, kind, committed
        self.stopped = stopped
        self._found: tuple[dict[str, int], set[str]] | None = None

    def run(self) -> None:
        try:
            self._found = self._look()
        except StorageError:
            self._found = None  # `result` looks again, when the storage may be back

    def result(self) -> tuple[dict[str, int], set[str]]:
        """The highest part of each committed shard that has one too many, or that may have, as no
        index tells; the shards that are not committed.
        """
        self.join()
        return self._look() if self._found is None else self._found

    def _look(self) -> tuple[dict[str, int], set[str]]:
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
