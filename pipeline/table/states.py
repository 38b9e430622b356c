"""How far the shards of an input are in a table: from listings, indexes, manifests and footers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice

from pipeline.errors import InputError, StorageError
from pipeline.storage import Shard, Store
from pipeline.table.audit import forget_index
from pipeline.table.committed import Committed, CommittedShards
from pipeline.table.index import INDEXED_AT_ONCE, ShardEntry, write_entries
from pipeline.table.manifests import ShardManifest, manifest_name, read_manifest
from pipeline.table.part_files import Files, PartFiles, files_of
from pipeline.table.part_index import PartIndex, PartKey
from pipeline.table.parts import (
    LATENTS,
    REJECTS,
    PartSummary,
    Stamp,
    Stamps,
    parse_part_name,
    part_name,
    read_summary,
)
from pipeline.table.strays import Strays

# Lookups in flight while the states of many shards are read from an object store.
_THREADS = 16


@dataclass(frozen=True)
class ShardState:
    """How far a shard is.

    `committed` is set if the shard is committed as it now stands in the input. Else `parts` holds
    the parts that need no work, by number, and `stale` the names of files that a run over another
    state of the shard, or with another part size, left behind: `TableWriter.clear` removes them.
    """

    shard: Shard
    committed: Committed | None = None
    parts: Mapping[int, PartSummary] = field(default_factory=dict)
    stale: tuple[str, ...] = ()

    @property
    def done(self) -> bool:
        """Whether there is nothing to do."""
        return self.committed is not None

    def without(self, numbers: Iterable[int]) -> ShardState:
        """The state with the parts of these numbers stale, so that they are done again."""
        dropped = set(numbers)
        kept = {part: summary for part, summary in self.parts.items() if part not in dropped}
        names = (name for part in sorted(dropped) for name in _names(self.shard, part))
        return replace(self, parts=kept, stale=(*self.stale, *names))


def state_of(store: Store, stamps: Stamps, shard: Shard) -> ShardState:
    """The state of one shard, from its manifest or the footers of its parts, not from an index.

    Raises `InputError` if the table's shard of this id came from another place.
    """
    if not store.exists(manifest_name(shard.shard_id)):
        files = files_of(store, shard.shard_id)
        return _open_state(shard, stamps, files, {}, partial(map, partial(read_summary, store)))
    manifest = read_manifest(store, shard.shard_id)
    return _committed_state(store, shard, manifest) or _stale_state(
        shard, files_of(store, shard.shard_id)
    )


class States:
    """The states of many shards, by some listings of the table and then some reads at a time.

    Memory holds the numbers of every committed shard and what is known of every open part.
    """

    def __init__(
        self, store: Store, stamps: Stamps, index: PartIndex, strays: Strays | None = None
    ) -> None:
        self.store, self.stamps, self.read_only = store, stamps, index.read_only
        self._committed = CommittedShards(store)
        if self._committed.distrusted and not self.read_only:
            forget_index(store)
        self._strays = strays
        if strays:
            strays.look_beside(self._committed)
        self._known = index.read(self._committed)
        self._files = PartFiles(store, self._committed)
        self._unindexed: dict[str, ShardManifest] = {}

    def of(self, shards: Iterable[Shard]) -> Iterator[ShardState]:
        """The state of each shard, in order, as `state_of` has it."""
        # Two pools: who waits for footers must not take the threads that read them.
        with _interruptible(_THREADS) as pool, _interruptible(_THREADS) as footers:
            source, state = iter(shards), partial(self._state, footers)
            while group := list(islice(source, 4 * _THREADS)):
                found = self._committed.find(group)
                looked_up = pool.map(
                    state, [shard for shard, one in zip(group, found, strict=True) if not one]
                )
                for shard, committed in zip(group, found, strict=True):
                    yield ShardState(shard, committed) if committed else next(looked_up)
                self._index_manifests()

    def _state(self, footers: ThreadPoolExecutor, shard: Shard) -> ShardState:
        if shard.shard_id not in self._committed:
            files, known = self._files.of(shard.shard_id), self._known.of(shard.shard_id)
            read = partial(footers.map, partial(read_summary, self.store))
            return _open_state(shard, self.stamps, files, known, read)
        try:
            manifest = read_manifest(self.store, shard.shard_id)
        except StorageError:
            if self.store.exists(manifest_name(shard.shard_id)):
                raise
            # Another run has cleared it since it was listed.
            return state_of(self.store, self.stamps, shard)
        if self._strays:
            self._strays.has_parts(shard.shard_id, len(manifest.parts))
        state = _committed_state(self.store, shard, manifest)
        if state:
            self._unindexed[shard.shard_id] = manifest
        return state or _stale_state(shard, self._files.of_committed(manifest))

    def _index_manifests(self) -> None:
        """Move the manifests that were read into the index, if they are many."""
        if len(self._unindexed) < INDEXED_AT_ONCE:
            return
        if self.read_only:
            self._unindexed.clear()
            return
        etags = {shard: self._committed.unindexed_etag(shard) for shard in self._unindexed}
        entries = [ShardEntry.of(self._unindexed[one], etag) for one, etag in etags.items() if etag]
        if entries:
            write_entries(self.store, entries)
        self._unindexed.clear()


@contextmanager
def _interruptible(threads: int) -> Iterator[ThreadPoolExecutor]:
    """A pool that begins nothing more when the block is left, as by Ctrl-C."""
    pool = ThreadPoolExecutor(threads)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _committed_state(store: Store, shard: Shard, manifest: ShardManifest) -> ShardState | None:
    """The state of a shard that is as it was when its manifest was written; else None."""
    if manifest.uri != shard.source:
        raise InputError(
            f"the table '{store.root}' holds shard '{shard.shard_id}' from "
            f"'{manifest.uri}'; this input has it at '{shard.source}': choose another output"
        )
    if (manifest.etag, manifest.size) != (shard.etag, shard.size):
        return None
    return ShardState(shard, Committed(manifest.samples, len(manifest.parts)))


def _stale_state(shard: Shard, files: Files) -> ShardState:
    """The state of a shard that was committed as it stood before."""
    return ShardState(shard, stale=(manifest_name(shard.shard_id), *sorted(files)))


def _open_state(
    shard: Shard,
    stamps: Stamps,
    files: Files,  # all of its parts
    known: Mapping[PartKey, PartSummary],
    read: Callable[[list[Stamp]], Iterable[PartSummary | None]],  # what the footers say
) -> ShardState:
    """The state of a shard without a manifest: footers of parts that are not known are read."""
    parts, unread = {}, []
    for part in _whole_parts(shard, files):
        stamp, (latents, rejects) = stamps.of(shard, part), _names(shard, part)
        summary = known.get((stamp.digest, files[latents], files[rejects])) if known else None
        if summary:
            parts[part] = summary
        else:
            unread.append(stamp)
    parts |= {summary.part: summary for summary in read(unread) if summary}
    taken = {name for part in parts for name in _names(shard, part)}
    return ShardState(shard, parts=parts, stale=tuple(sorted(files.keys() - taken)))


def _whole_parts(shard: Shard, files: Files) -> list[int]:
    """The numbers of the parts of which both files are there."""
    numbers = {parsed[1] for name in files if (parsed := parse_part_name(name))}
    return [part for part in sorted(numbers) if all(one in files for one in _names(shard, part))]


def _names(shard: Shard, part: int) -> tuple[str, str]:
    """Of a part's latents and rejects."""
    return part_name(LATENTS, shard.shard_id, part), part_name(REJECTS, shard.shard_id, part)
