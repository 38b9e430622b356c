"""Writing a table: what is done already, parts, and the commit of shards."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from typing import Any

import pyarrow as pa

from pipeline.errors import InputError, StorageError, TableError
from pipeline.storage import Shard, Store
from pipeline.table.description import Description, settle_description
from pipeline.table.documents import to_json
from pipeline.table.index import ShardEntry, write_entries
from pipeline.table.manifests import ShardManifest, manifest_name, read_manifest
from pipeline.table.part_files import names_beside, remove_parts_beside
from pipeline.table.part_index import PartEntry, PartIndex
from pipeline.table.parts import (
    LATENTS,
    REJECTS,
    PartSummary,
    Stamps,
    counts_of,
    part_name,
    read_summary,
    write_part,
)
from pipeline.table.schema import latents_table, rejects_table
from pipeline.table.states import ShardState, States, state_of
from pipeline.table.strays import Strays

# Footers that are read at a time before a commit.
_THREADS = 16


class TableWriter:
    """The table at a root, open for writing; it pickles, and many may write at once.

    Parts of a shard are `part_size` consecutive samples each, the last one what is left.
    """

    def __init__(
        self, root: str, description: Description, *, part_size: int, read_only: bool = False
    ) -> None:
        """Write nothing; `open_for_writing` also settles `_table.json`.

        With `read_only`, asking for states writes to no index and removes nothing from it.
        """
        if part_size < 1:
            raise InputError(f"a part of {part_size} samples is none")
        self.read_only = read_only
        self.store = Store(root)
        self.description = description
        self.part_size = part_size
        self.stamps = Stamps(description.schema_version, description.fingerprint, part_size)

    def state(self, shard: Shard) -> ShardState:
        """What of `shard` is in the table. Reads the manifest or the footers of parts, no rows.

        Raises `InputError` if the table's shard of this id came from another place.
        """
        return state_of(self.store, self.stamps, shard)

    def states(
        self,
        shards: Iterable[Shard],
        index: PartIndex | None = None,
        strays: Strays | None = None,
    ) -> Iterator[ShardState]:
        """`state` of each shard, in order, with what the table's indexes know.

        `index` and `strays` are those of the run: the one takes note of the files that it has to
        remove later, the other begins to look for what earlier runs left.
        """
        index = index or PartIndex(self.store, read_only=self.read_only)
        yield from States(self.store, self.stamps, index, strays).of(shards)

    def clear(self, state: ShardState) -> None:
        """Remove what `state` calls stale: the manifest first, so that no commit stands alone.

        Nothing is removed of a shard that another run has committed since its state was read.
        """
        manifest = manifest_name(state.shard.shard_id)
        if not state.stale or self._is_committed(state.shard, anyhow=manifest not in state.stale):
            return
        self.store.remove(manifest)
        for kind in (LATENTS, REJECTS):
            names = [name for name in state.stale if name.startswith(f"{kind}/")]
            with ThreadPoolExecutor(_THREADS) as pool:
                list(pool.map(self.store.remove, names))
        # One that came between the look and the removal names files that are gone.
        self.store.remove(manifest)

    def _is_committed(self, shard: Shard, *, anyhow: bool) -> bool:
        """Whether the shard has a manifest, of its present state unless `anyhow`."""
        if not self.store.exists(manifest_name(shard.shard_id)):
            return False
        if anyhow:
            return True
        made = read_manifest(self.store, shard.shard_id)
        return (made.etag, made.size) == (shard.etag, shard.size)

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
            self.stamps.of(shard, part),
            latents,
            rejects,
            samples=samples,
            metrics=self.description.metrics,
        )
        self._withdraw_if_committed(shard, summary)
        return summary

    def part_etags(self, shard: Shard, part: int) -> tuple[str, str]:
        """What the store knows the latents and the rejects of a part by; empty if it cannot say."""
        names = (part_name(kind, shard.shard_id, part) for kind in (LATENTS, REJECTS))
        try:
            latents, rejects = (self.store.info(name).etag for name in names)
        except StorageError:
            return "", ""
        return latents, rejects

    def part_entry(self, shard: Shard, summary: PartSummary, etags: tuple[str, str]) -> PartEntry:
        """What the part index takes of a part that was just written."""
        return PartEntry.of(self.stamps.of(shard, summary.part), summary, etags)

    def commit_shard(
        self,
        shard: Shard,
        parts: Iterable[PartSummary],
        left_out: Mapping[str, int] | None = None,
    ) -> ShardManifest:
        """Write the manifest, when every part of `shard` is in the table.

        `parts` are the summaries that `write_part` returned and those of `ShardState.parts`; the
        files of one without a SHA-256 are read once for it. `left_out` is what the shard's reader
        passed over. Raises `TableError` if a part is missing or a file of another part is there.
        """
        complete = [self._hashed(shard.shard_id, summary) for summary in parts]
        manifest = ShardManifest.of(
            shard, complete, self.stamps.fingerprint, self.part_size, left_out
        )
        self._check_names(shard, complete)
        ours = manifest.write(self.store)
        try:
            # Another run may have come between; of two the one whose files stand is right.
            self._check_parts(shard, complete)
        except (StorageError, TableError):
            if ours:
                with suppress(StorageError):  # what went wrong first is what is to be told
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

    def _withdraw_if_committed(self, shard: Shard, summary: PartSummary) -> None:
        """Take back a part that came too late, which readers would find beside a whole shard.

        Raises `TableError` if another run has committed the shard, of another state of the input
        or cut into other parts, while this one was at work on it.
        """
        if not self.store.exists(manifest_name(shard.shard_id)):
            return
        manifest = read_manifest(self.store, shard.shard_id)
        ours = (manifest.etag, manifest.part_size) == (shard.etag, self.part_size)
        part = summary.part
        if ours and counts_of(summary) in [counts_of(one) for one in manifest.parts[part:][:1]]:
            return
        if not self._stands(shard, manifest):
            # Put by a run that is dead, when its parts had been cleared for this one's. Unless it
            # is another one since, of a run that has cleared and done the shard meanwhile.
            if self._is_committed(shard, anyhow=True) and manifest == read_manifest(
                self.store, shard.shard_id
            ):
                self.store.remove(manifest_name(shard.shard_id))
            return
        if part >= len(manifest.parts):
            remove_parts_beside(self.store, manifest)
        raise TableError(
            f"another run has committed shard '{shard.shard_id}', of another state of the input or "
            "cut into other parts; when no other job writes to this table, run again"
        )

    def _stands(self, shard: Shard, manifest: ShardManifest) -> bool:
        """Whether the files of the shard's parts are those that the manifest names."""
        stamps = Stamps(self.stamps.schema_version, manifest.fingerprint, manifest.part_size)
        there = replace(shard, etag=manifest.etag)
        for part in manifest.parts:
            names = (part_name(kind, shard.shard_id, part.part) for kind in (LATENTS, REJECTS))
            if not all(map(self.store.exists, names)):
                return False
            found = read_summary(self.store, stamps.of(there, part.part))
            if found is None or counts_of(found) != counts_of(part):
                return False
        return True

    def _check_names(self, shard: Shard, parts: Sequence[PartSummary]) -> None:
        """Raise `TableError` unless the shard's files have the names of these parts, no others.

        What it may miss on a disk, a part behind a gap, is removed by the next run.
        """
        expected = {
            part_name(kind, shard.shard_id, summary.part)
            for kind in (LATENTS, REJECTS)
            for summary in parts
        }
        difference = expected ^ names_beside(self.store, shard.shard_id, len(parts))
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
            stamps = (self.stamps.of(shard, summary.part) for summary in parts)
            found = pool.map(lambda stamp: read_summary(self.store, stamp), stamps)
            for summary, there in zip(parts, found, strict=True):
                # Figures too: the part index, which resumes believe, may say others.
                if there is None or (*counts_of(there), there.figures) != (
                    *counts_of(summary),
                    summary.figures,
                ):
                    raise TableError(
                        f"shard '{shard.shard_id}' cannot be committed: another run has written "
                        f"part {summary.part}; when no other job writes to this table, run again"
                    )

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

    Raises `FingerprintError` if it was made with other settings, `RequestError` if nobody can tell.
    """
    settled = settle_description(Store(root), description)
    return TableWriter(root, settled, part_size=part_size)


def file_sha256(store: Store, name: str) -> str:
    """Hex SHA-256 of an object, read as a stream."""
    digest = hashlib.sha256()
    with store.open(name) as file:
        while block := file.read(8 << 20):
            digest.update(block)
    return digest.hexdigest()
