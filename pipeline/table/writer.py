"""Writing a table: what is done already, parts, and the commit of shards."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import pyarrow as pa

from pipeline.errors import InputError, TableError
from pipeline.storage import Shard, Store
from pipeline.table.description import Description, settle_description
from pipeline.table.documents import to_json
from pipeline.table.index import INDEXED_AT_ONCE, ShardEntry, read_entries, write_entries
from pipeline.table.manifests import ShardManifest, manifest_etags, manifest_name, read_manifest
from pipeline.table.part_files import PartFiles, files_of
from pipeline.table.parts import (
    LATENTS,
    REJECTS,
    PartSummary,
    Stamp,
    counts_of,
    parse_part_name,
    part_name,
    read_summary,
    write_part,
)
from pipeline.table.schema import latents_table, rejects_table

# Lookups in flight while the states of many shards are read from an object store.
_THREADS = 16


class Committed(NamedTuple):
    """What a committed shard holds: numbers of samples and of parts."""

    samples: int
    parts: int


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


class TableWriter:
    """The table at a root, open for writing; it pickles, and many may write at once.

    Parts of a shard are `part_size` consecutive samples each, the last one what is left.
    """

    def __init__(
        self, root: str, description: Description, *, part_size: int, read_only: bool = False
    ) -> None:
        """Write nothing; `open_for_writing` also settles `_table.json`.

        With `read_only`, asking for states writes no index.
        """
        if part_size < 1:
            raise InputError(f"a part of {part_size} samples is none")
        self.read_only = read_only
        self.store = Store(root)
        self.description = description
        self.part_size = part_size
        self._fingerprint = description.fingerprint

    def state(self, shard: Shard) -> ShardState:
        """What of `shard` is in the table. Reads the manifest or the footers of parts, no rows.

        Raises `InputError` if the table's shard of this id came from another place.
        """
        if self.store.exists(manifest_name(shard.shard_id)):
            return self._committed_state(shard, {})
        return self._open_state(shard, self._part_files(shard.shard_id))

    def states(self, shards: Iterable[Shard]) -> Iterator[ShardState]:
        """`state` of each shard, in order: some listings of the table, then some reads at a time.

        Memory holds 16 bytes and a few numbers of every committed shard that has not come yet.
        """
        etags = manifest_etags(self.store)
        known = {
            entry.shard: (_digest(entry.uri, entry.etag, entry.size), entry.samples, entry.parts)
            for entry in read_entries(self.store, etags)
        }
        files = PartFiles(self.store, etags)
        unknown: dict[str, ShardManifest] = {}

        def state(shard: Shard) -> ShardState:
            if shard.shard_id not in etags:
                return self._open_state(shard, files.of(shard.shard_id), footers)
            digest, samples, parts = known.pop(shard.shard_id, (b"", 0, 0))
            if digest == _digest(shard.source, shard.etag, shard.size):
                return ShardState(shard, Committed(samples, parts))
            return self._committed_state(shard, unknown, files)

        # Two pools: who waits for footers must not take the threads that read them.
        with ThreadPoolExecutor(_THREADS) as pool, ThreadPoolExecutor(_THREADS) as footers:
            source = iter(shards)
            while group := list(islice(source, 4 * _THREADS)):
                yield from pool.map(state, group)
                if len(unknown) >= INDEXED_AT_ONCE:
                    self._index(unknown, etags)
            self._index(unknown, etags)

    def clear(self, state: ShardState) -> None:
        """Remove what `state` calls stale: the manifest first, so that no commit stands alone.

        Nothing is removed of a shard that another run has committed since its state was read.
        """
        manifest = manifest_name(state.shard.shard_id)
        if not state.stale or (manifest not in state.stale and self.store.exists(manifest)):
            return
        for name in sorted(state.stale, key=lambda name: not name.startswith("_shards/")):
            self.store.remove(name)
        if manifest not in state.stale:
            # It came between the look and the removal, and names files that are gone.
            self.store.remove(manifest)

    def write_part(
        self,
        shard: Shard,
        part: int,
        *,
        samples: int,
        latents: Sequence[Mapping[str, Any]],
        rejects: Sequence[Mapping[str, Any]],
    ) -> PartSummary:
        """Put part number `part` of `shard` from rows, as `latents_table` takes them.

        The same rows give the same bytes under the same name, so a repeat is harmless. Raises
        `TableError` if the rows do not fit the table or do not account for all `samples`.
        """
        return self.write_tables(
            shard,
            part,
            samples=samples,
            latents=latents_table(latents, self.description.columns, shard.shard_id),
            rejects=rejects_table(rejects, shard.shard_id),
        )

    def write_tables(
        self, shard: Shard, part: int, *, samples: int, latents: pa.Table, rejects: pa.Table
    ) -> PartSummary:
        """`write_part` for rows that `latents_table` and `rejects_table` have made Arrow."""
        summary = write_part(
            self.store,
            self._stamp(shard, part),
            latents,
            rejects,
            samples=samples,
            metrics=self.description.metrics,
        )
        self._withdraw_if_committed(shard, part)
        return summary

    def commit_shard(self, shard: Shard, parts: Iterable[PartSummary]) -> ShardManifest:
        """Write the manifest, when every part of `shard` is in the table.

        `parts` are the summaries that `write_part` returned and those of `ShardState.parts`; the
        files of the latter are read once for their SHA-256. Raises `TableError` if a part is
        missing or a file of another part is there.
        """
        complete = [self._hashed(shard.shard_id, summary) for summary in parts]
        manifest = ShardManifest.of(shard, complete, self._fingerprint, self.part_size)
        self._check_names(shard, complete)
        ours = manifest.write(self.store)
        try:
            # Another run may have come between; of two the one whose files stand is right.
            self._check_parts(shard, complete)
        except TableError:
            if ours:
                self.store.remove(manifest_name(shard.shard_id))
            raise
        if not ours:
            manifest.write(self.store, anyway=True)
        return manifest

    def entry(self, manifest: ShardManifest) -> ShardEntry:
        """What `index` takes of a shard that was just committed."""
        info = self.store.info(manifest_name(manifest.shard))
        return ShardEntry.of(manifest, info.etag)

    def index(self, entries: Sequence[ShardEntry]) -> None:
        """Spare the next run the manifests of these shards; worth it for a thousand or so."""
        write_entries(self.store, entries)

    def record_run(self, started: datetime, run_id: str, facts: Mapping[str, Any]) -> str:
        """Put `_runs/<start>-<id>.json`, what one run did; its name."""
        name = f"_runs/{started:%Y%m%dT%H%M%SZ}-{run_id}.json"
        self.store.put(name, to_json(dict(facts)))
        return name

    def _stamp(self, shard: Shard, part: int) -> Stamp:
        return Stamp(
            schema_version=self.description.schema_version,
            fingerprint=self._fingerprint,
            shard=shard.shard_id,
            shard_etag=shard.etag,
            part=part,
            part_size=self.part_size,
        )

    def _part_files(self, shard_id: str) -> list[str]:
        """The names of all files of parts of the shard."""
        return [
            name for kind in (LATENTS, REJECTS) for name in files_of(self.store, kind, shard_id)
        ]

    def _withdraw_if_committed(self, shard: Shard, part: int) -> None:
        """Take back a part that came too late, which readers would find beside a whole shard.

        Raises `TableError` if another run has committed the shard, of another state of the input
        or cut into other parts, while this one was at work on it.
        """
        if not self.store.exists(manifest_name(shard.shard_id)):
            return
        manifest = read_manifest(self.store, shard.shard_id)
        if (manifest.etag, manifest.part_size) == (shard.etag, self.part_size):
            return
        if part >= len(manifest.parts):
            self._remove_parts_from(shard, len(manifest.parts))
        raise TableError(
            f"another run has committed shard '{shard.shard_id}', of another state of the input or "
            "with another part size; when no other job writes to this table, run again"
        )

    def _remove_parts_from(self, shard: Shard, first: int) -> None:
        """Remove the files of the parts with number `first` and above, latents before rejects."""
        for name in self._part_files(shard.shard_id):
            _, part = parse_part_name(name) or ("", -1)
            if part >= first:
                self.store.remove(name)

    def _check_names(self, shard: Shard, parts: Sequence[PartSummary]) -> None:
        """Raise `TableError` unless the shard's files have the names of these parts, no others."""
        expected = {
            part_name(kind, shard.shard_id, summary.part)
            for kind in (LATENTS, REJECTS)
            for summary in parts
        }
        difference = expected ^ set(self._part_files(shard.shard_id))
        if difference:
            raise TableError(
                f"shard '{shard.shard_id}' cannot be committed: '{min(difference)}' is "
                + ("missing" if min(difference) in expected else "not one of its parts")
            )

    def _check_parts(self, shard: Shard, parts: Sequence[PartSummary]) -> None:
        """Raise `TableError` unless the files of the shard are these parts and no others.

        Another run, over another state of the shard or with another part size, may have removed
        them and written its own under the same names.
        """
        self._check_names(shard, parts)
        with ThreadPoolExecutor(_THREADS) as pool:
            stamps = (self._stamp(shard, summary.part) for summary in parts)
            found = pool.map(lambda stamp: read_summary(self.store, stamp), stamps)
            for summary, there in zip(parts, found, strict=True):
                if there is None or counts_of(there) != counts_of(summary):
                    raise TableError(
                        f"shard '{shard.shard_id}' cannot be committed: another run has written "
                        f"part {summary.part}; when no other job writes to this table, run again"
                    )

    def _index(self, manifests: dict[str, ShardManifest], etags: Mapping[str, str]) -> None:
        """Move `manifests` into the index, if they are many and this writer may write."""
        if self.read_only or len(manifests) < INDEXED_AT_ONCE:
            return
        self.index([ShardEntry.of(one, etags[shard]) for shard, one in manifests.items()])
        manifests.clear()

    def _committed_state(
        self,
        shard: Shard,
        read: dict[str, ShardManifest],
        files: PartFiles | None = None,
    ) -> ShardState:
        """The state of a shard with a manifest, which goes into `read` if it is as it was."""
        manifest = read_manifest(self.store, shard.shard_id)
        if manifest.uri != shard.source:
            raise InputError(
                f"the table '{self.store.root}' holds shard '{shard.shard_id}' from "
                f"'{manifest.uri}'; this input has it at '{shard.source}': choose another output"
            )
        if (manifest.etag, manifest.size) == (shard.etag, shard.size):
            read[shard.shard_id] = manifest
            return ShardState(shard, Committed(manifest.samples, len(manifest.parts)))
        parts = files.of(shard.shard_id) if files else self._part_files(shard.shard_id)
        return ShardState(shard, stale=(manifest_name(shard.shard_id), *parts))

    def _open_state(
        self, shard: Shard, files: Sequence[str], pool: ThreadPoolExecutor | None = None
    ) -> ShardState:
        """The state of a shard without a manifest; `pool` reads its footers, some at a time."""
        stale = set(files)
        numbers = sorted({parsed[1] for name in files if (parsed := parse_part_name(name))})
        whole = [part for part in numbers if stale.issuperset(_files_of_part(shard, part))]
        stamps = [self._stamp(shard, part) for part in whole]
        read = partial(read_summary, self.store)
        summaries = pool.map(read, stamps) if pool else map(read, stamps)
        parts = {summary.part: summary for summary in summaries if summary is not None}
        for part in parts:
            stale -= _files_of_part(shard, part)
        return ShardState(shard, parts=parts, stale=tuple(sorted(stale)))

    def _hashed(self, shard_id: str, summary: PartSummary) -> PartSummary:
        if summary.latents_sha256 and summary.rejects_sha256:
            return summary
        latents, rejects = (
            file_sha256(self.store, part_name(kind, shard_id, summary.part))
            for kind in (LATENTS, REJECTS)
        )
        return replace(summary, latents_sha256=latents, rejects_sha256=rejects)


def open_for_writing(root: str, description: Description, *, part_size: int) -> TableWriter:
    """A writer for the table at `root`, which is made if it is not there.

    Raises `FingerprintError` if it was made with other settings.
    """
    settled = settle_description(Store(root), description)
    return TableWriter(root, settled, part_size=part_size)


def _files_of_part(shard: Shard, part: int) -> set[str]:
    return {part_name(kind, shard.shard_id, part) for kind in (LATENTS, REJECTS)}


def _digest(uri: str, etag: str, size: int) -> bytes:
    """A shard's place and state in 16 bytes."""
    return hashlib.sha256(f"{uri}\0{etag}\0{size}".encode()).digest()[:16]


def file_sha256(store: Store, name: str) -> str:
    """Hex SHA-256 of an object, read as a stream."""
    digest = hashlib.sha256()
    with store.open(name) as file:
        while block := file.read(8 << 20):
            digest.update(block)
    return digest.hexdigest()
