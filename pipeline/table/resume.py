"""Progress of an input's shards in a table, from listings, indexes, manifests and footers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice

from pipeline.errors import InputError, StorageError
from pipeline.storage import Shard, Store
from pipeline.table.cleanup import Orphans
from pipeline.table.part_files import Files, PartFiles, files_of, list_names
from pipeline.table.part_index import PartIndex, RowKey
from pipeline.table.parts import (
    PartKey,
    PartRecord,
    parse_part_name,
    part_names,
    read_part_record,
)
from pipeline.table.shard_index import (
    INDEXED_AT_ONCE,
    CommittedShards,
    forget_index,
    write_index,
)
from pipeline.table.shard_records import ShardRecord, manifest_name, read_shard_record
from pipeline.table.stats import Counts

# Return the key of a part, given its shard and number.
KeyOf = Callable[[Shard, int], PartKey]

# Lookups in flight while the states of many shards are read from an object store.
_THREADS = 16


@dataclass(frozen=True)
class ShardState:
    """Progress of one shard.

    `committed` is set if the shard is committed in its present state. Otherwise `parts` holds the
    finished parts by number, and `stale` the names of files of another state of the shard or of
    another part size, which `TableWriter.clear` removes.
    """

    shard: Shard
    committed: Counts | None = None
    parts: Mapping[int, PartRecord] = field(default_factory=dict)
    stale: tuple[str, ...] = ()

    @property
    def done(self) -> bool:
        """True if the shard needs no work."""
        return self.committed is not None

    def without(self, numbers: Iterable[int]) -> ShardState:
        """Return the state with these parts marked as stale, so that they are done again."""
        dropped = set(numbers)
        kept = {number: part for number, part in self.parts.items() if number not in dropped}
        names = (name for part in sorted(dropped) for name in part_names(self.shard.shard_id, part))
        return replace(self, parts=kept, stale=(*self.stale, *names))


class States:
    """States of many shards, from a few listings of the table and then a few reads at a time.

    Holds `CommittedShards` and the rows of the part index in memory.
    """

    def __init__(
        self, store: Store, key_of: KeyOf, index: PartIndex, orphans: Orphans | None = None
    ) -> None:
        self.store, self.key_of, self.read_only = store, key_of, index.read_only
        self._committed = CommittedShards(store)
        if self._committed.distrusted and not self.read_only:
            forget_index(store)
        self._orphans = orphans
        if orphans:
            orphans.start(self._committed)
        self._indexed_parts = index.read(self._committed)
        self._files = PartFiles(store, self._committed)
        self._unindexed: dict[str, ShardRecord] = {}

    def of(self, shards: Iterable[Shard]) -> Iterator[ShardState]:
        """Yield the state of each shard, in order.

        Raises `InputError` if the table's shard of an id came from another place.
        """
        # Two pools: a thread that waits for footers must not block the threads that read them.
        with _interruptible(_THREADS) as pool, _interruptible(_THREADS) as footers:
            source, state = iter(shards), partial(self._state, footers)
            while group := list(islice(source, 4 * _THREADS)):
                indexed = self._committed.find(group)
                looked_up = pool.map(
                    state,
                    [shard for shard, counts in zip(group, indexed, strict=True) if not counts],
                )
                for shard, counts in zip(group, indexed, strict=True):
                    yield ShardState(shard, counts) if counts else next(looked_up)
                self._index_manifests()

    def _state(self, footers: ThreadPoolExecutor, shard: Shard) -> ShardState:
        if shard.shard_id not in self._committed:
            indexed = self._indexed_parts.of(shard.shard_id)
            return self._open_state(footers, shard, self._files.of(shard.shard_id), indexed)
        try:
            record = read_shard_record(self.store, shard.shard_id)
        except StorageError:
            if self.store.exists(manifest_name(shard.shard_id)):
                raise
            # Another run has removed the manifest since the listing.
            return self._open_state(footers, shard, files_of(self.store, shard.shard_id), {})
        if self._orphans:
            self._orphans.add_part_count(shard.shard_id, record.n_parts)
        state = _committed_state(self.store, shard, record)
        if state:
            self._unindexed[shard.shard_id] = record
        return state or ShardState(
            shard,
            stale=(
                manifest_name(shard.shard_id),
                *sorted(list_names(self.store, shard.shard_id, record.n_parts)),
            ),
        )

    def _open_state(
        self,
        footers: ThreadPoolExecutor,
        shard: Shard,
        files: Files,  # of all its parts
        indexed: Mapping[RowKey, PartRecord],
    ) -> ShardState:
        """Return the state of a shard without a manifest; read the footers of unindexed parts."""
        parts, unread = {}, []
        for part in _whole_parts(shard.shard_id, files):
            key, (latents, rejects) = self.key_of(shard, part), part_names(shard.shard_id, part)
            record = indexed.get((key.digest, files[latents], files[rejects])) if indexed else None
            if record:
                parts[part] = record
            else:
                unread.append(key)
        records = footers.map(partial(read_part_record, self.store), unread)
        parts |= {record.part: record for record in records if record}
        taken = {name for part in parts for name in part_names(shard.shard_id, part)}
        return ShardState(shard, parts=parts, stale=tuple(sorted(files.keys() - taken)))

    def _index_manifests(self) -> None:
        """Write index rows for the manifests that were read, once there are enough of them."""
        if len(self._unindexed) < INDEXED_AT_ONCE:
            return
        if self.read_only:
            self._unindexed.clear()
            return
        etags = {shard: self._committed.unindexed_etag(shard) for shard in self._unindexed}
        records = [
            replace(self._unindexed[shard], manifest_etag=etag)
            for shard, etag in etags.items()
            if etag
        ]
        if records:
            write_index(self.store, records)
        self._unindexed.clear()


@contextmanager
def _interruptible(threads: int) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool that cancels waiting tasks when the block is left, for example by Ctrl-C."""
    pool = ThreadPoolExecutor(threads)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _committed_state(store: Store, shard: Shard, record: ShardRecord) -> ShardState | None:
    """Return the state of a shard that its manifest describes; None if the shard has changed."""
    if record.uri != shard.source:
        raise InputError(
            f"the table '{store.root}' holds shard '{shard.shard_id}' from "
            f"'{record.uri}'; this input has it at '{shard.source}': choose another output"
        )
    if (record.etag, record.size) != (shard.etag, shard.size):
        return None
    return ShardState(shard, Counts(shards=1, samples=record.samples, parts=record.n_parts))


def _whole_parts(shard_id: str, files: Files) -> list[int]:
    """Return the numbers of the parts that have both files."""
    numbers = {parsed[1] for name in files if (parsed := parse_part_name(name))}
    return [part for part in sorted(numbers) if files.keys() >= {*part_names(shard_id, part)}]
