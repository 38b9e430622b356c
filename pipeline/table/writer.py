"""Write a table: states of shards, parts, and commits of shards."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import Any

from pipeline.errors import InputError, StorageError, TableError
from pipeline.storage import Shard, Store
from pipeline.table.cleanup import Orphans
from pipeline.table.forgetting.forgotten import Forgotten, check_finished
from pipeline.table.part_files import list_names, remove_unowned_parts
from pipeline.table.part_index import PartIndex
from pipeline.table.parts import (
    LATENTS,
    REJECTS,
    PartKey,
    PartRecord,
    check_accounts,
    part_names,
    read_part_record,
    write_part,
)
from pipeline.table.resume import ShardState, States
from pipeline.table.schema import latents_table, rejects_table
from pipeline.table.shard_records import ShardRecord, manifest_name, read_shard_record
from pipeline.table.spec import TableSpec, create_or_check_spec

# Footers that are read at a time before a commit.
_THREADS = 16
_BLOCK = 8 << 20  # bytes of a file that are hashed at a time: each read is one request to S3


class TableWriter:
    """Writer of the table at a root. It can be pickled, and many may write at the same time.

    Each part of a shard holds `part_size` consecutive samples, the last one the rest.
    """

    def __init__(
        self, root: str, spec: TableSpec, *, part_size: int, read_only: bool = False
    ) -> None:
        """Set up the writer and write nothing; `open_for_writing` also handles `_table.json`.

        With `read_only`, `states` leaves the index files as they are.
        """
        if part_size < 1:
            raise InputError(f"part_size must be at least 1, got {part_size}")
        self.read_only = read_only
        self.forgotten = Forgotten()  # images that are erased from every part
        self.store = Store(root)
        self.spec = spec
        self.part_size = part_size
        self._fingerprint = spec.fingerprint

    def part_key(self, shard: Shard, part: int) -> PartKey:
        """Return the key of part number `part` of the shard as it is in the input."""
        return PartKey(
            schema_version=self.spec.schema_version,
            fingerprint=self._fingerprint,
            shard=shard.shard_id,
            shard_etag=shard.etag,
            part=part,
            part_size=self.part_size,
        )

    def states(
        self,
        shards: Iterable[Shard],
        index: PartIndex | None = None,
        orphans: Orphans | None = None,
    ) -> Iterator[ShardState]:
        """Yield the progress of each shard, in order, using the indexes of the table.

        Raises `InputError` if the table's shard of an id came from another place. `index` and
        `orphans` belong to the run: the first reads its files and later removes them, the second
        starts to search for orphans.
        """
        index = index or PartIndex(self.store, read_only=self.read_only)
        yield from States(self.store, self.part_key, index, orphans).of(shards)

    def clear(self, state: ShardState) -> None:
        """Remove the stale files of `state`: the manifest first, so that no commit lacks its parts.

        Nothing is removed if another run has committed the shard since its state was read.
        """
        manifest = manifest_name(state.shard.shard_id)
        any_state = manifest not in state.stale
        if not state.stale or self._is_committed(state.shard, any_state=any_state):
            return
        self.store.remove(manifest)
        for kind in (LATENTS, REJECTS):
            names = [name for name in state.stale if name.startswith(f"{kind}/")]
            with ThreadPoolExecutor(_THREADS) as pool:
                list(pool.map(self.store.remove, names))
        # A manifest written between the check and the removal names files that are deleted.
        self.store.remove(manifest)

    def _is_committed(self, shard: Shard, *, any_state: bool) -> bool:
        """Return whether the shard has a manifest, of its present state unless `any_state`."""
        if not self.store.exists(manifest_name(shard.shard_id)):
            return False
        if any_state:
            return True
        record = read_shard_record(self.store, shard.shard_id)
        return (record.etag, record.size) == (shard.etag, shard.size)

    def write_part(
        self,
        shard: Shard,
        part: int,
        *,
        samples: int,
        latents: Sequence[Mapping[str, Any]],
        rejects: Sequence[Mapping[str, Any]],
    ) -> PartRecord:
        """Write part number `part` of `shard` from rows, in the form that `latents_table` takes.

        The same rows give the same bytes under the same name, so a repeat is harmless. Forgotten
        images are left out and counted as rejects. Raises `TableError` if the rows do not fit the
        table or do not account for all `samples`.
        """
        tables = (
            latents_table(latents, self.spec.columns, shard.shard_id),
            rejects_table(rejects, shard.shard_id),
        )
        if self.forgotten:
            check_accounts(shard.shard_id, part, *tables, samples)
            tables = self.forgotten.erase(*tables, part=part, samples=samples)
        key = self.part_key(shard, part)
        record = write_part(self.store, key, *tables, samples=samples, metrics=self.spec.metrics)
        self._withdraw_if_committed(shard, record)
        return record

    def with_etags(self, part: PartRecord) -> PartRecord:
        """Return the record of a written part with its files' etags, if they can be read."""
        try:
            latents, rejects = map(self.store.info, part_names(part.shard, part.part))
        except StorageError:
            return part
        return replace(part, latents_etag=latents.etag, rejects_etag=rejects.etag)

    def commit_shard(
        self,
        shard: Shard,
        parts: Iterable[PartRecord],
        left_out: Mapping[str, int] | None = None,
    ) -> ShardRecord:
        """Write the manifest of `shard`, all of whose parts must be in the table.

        `parts` are the records that `write_part` returned and those of `ShardState.parts`; if a
        record has no SHA-256, its files are read. `left_out` are the files that the shard's reader
        passed over. Raises `TableError` if a part is missing, or a file of another part exists.
        """
        complete = [self._hashed(shard.shard_id, part) for part in parts]
        record = ShardRecord.of(shard, complete, self._fingerprint, self.part_size, left_out)
        self._check_names(shard, complete)
        ours = record.write(self.store)
        try:
            # Another run may have replaced the files. Of two runs, the one whose files are stored
            # may commit.
            self._check_parts(shard, complete)
        except (StorageError, TableError):
            if ours:
                with suppress(StorageError):  # the first error is the one to report
                    self.store.remove(manifest_name(shard.shard_id))
            raise
        if not ours:
            record.write(self.store, replace=True)
        return record

    def with_manifest_etag(self, record: ShardRecord) -> ShardRecord:
        """Return the record of a committed shard with the manifest's etag, for the index."""
        return replace(record, manifest_etag=self.store.info(manifest_name(record.shard)).etag)

    def _withdraw_if_committed(self, shard: Shard, part: PartRecord) -> None:
        """Remove a part that was written after another run had committed its shard.

        Raises `TableError` if that commit is of another state of the input or has other parts:
        readers would see the part's faces twice.
        """
        if not self.store.exists(manifest_name(shard.shard_id)):
            return
        record = read_shard_record(self.store, shard.shard_id)
        ours = (record.etag, record.part_size) == (shard.etag, self.part_size)
        if ours and any(part.has_counts_of(other) for other in record.parts[part.part :][:1]):
            return
        if not self._is_whole(record):
            # A dying run wrote the manifest after its parts had been removed for this run's. Keep
            # it if it has changed since it was read: another run has done the shard meanwhile.
            if self._is_committed(shard, any_state=True) and record == read_shard_record(
                self.store, shard.shard_id
            ):
                self.store.remove(manifest_name(shard.shard_id))
            return
        if part.part >= record.n_parts:
            remove_unowned_parts(self.store, record)
        raise TableError(
            f"another run has committed shard '{shard.shard_id}', of another state of the input or "
            "cut into other parts; when no other job writes to this table, run again"
        )

    def _is_whole(self, record: ShardRecord) -> bool:
        """Return whether the files of all parts exist and match the manifest."""
        for part in record.parts:
            if not all(map(self.store.exists, part_names(record.shard, part.part))):
                return False
            stored = read_part_record(self.store, record.part_key(part.part))
            if stored is None or not stored.has_counts_of(part):
                return False
        return True

    def _check_names(self, shard: Shard, parts: Sequence[PartRecord]) -> None:
        """Raise `TableError` unless the shard's files have exactly the names of these parts.

        On a disk a file beyond a gap in the numbers may be missed; the next run removes it.
        """
        expected = {name for part in parts for name in part_names(shard.shard_id, part.part)}
        difference = expected ^ list_names(self.store, shard.shard_id, len(parts))
        if difference:
            raise TableError(
                f"shard '{shard.shard_id}' cannot be committed: '{min(difference)}' is "
                + ("missing" if min(difference) in expected else "not one of its parts")
            )

    def _check_parts(self, shard: Shard, parts: Sequence[PartRecord]) -> None:
        """Raise `TableError` unless the files of the shard are exactly these parts.

        Another run, over another state of the shard or with another part size, may have removed
        them and written its own under the same names.
        """
        self._check_names(shard, parts)
        with ThreadPoolExecutor(_THREADS) as pool:
            keys = (self.part_key(shard, part.part) for part in parts)
            stored = pool.map(lambda key: read_part_record(self.store, key), keys)
            for part, other in zip(parts, stored, strict=True):
                # Compare the figures too: those of a resumed part come from the part index.
                if not other or not _is_same(part, other):
                    raise TableError(
                        f"shard '{shard.shard_id}' cannot be committed: another run has written "
                        f"part {part.part}; when no other job writes to this table, run again"
                    )

    def _hashed(self, shard_id: str, part: PartRecord) -> PartRecord:
        if part.latents_sha256 and part.rejects_sha256:
            return part
        digests = []
        for name in part_names(shard_id, part.part):
            digest = hashlib.sha256()
            with self.store.open(name) as file:
                while block := file.read(_BLOCK):
                    digest.update(block)
            digests.append(digest.hexdigest())
        return replace(part, latents_sha256=digests[0], rejects_sha256=digests[1])


def _is_same(part: PartRecord, stored: PartRecord) -> bool:
    """Return whether the stored files are the part's, as far as a footer and the rejects tell."""
    same_rejects = stored.rejects_sha256 == part.rejects_sha256
    return stored.has_counts_of(part) and stored.figures == part.figures and same_rejects


def open_for_writing(root: str, spec: TableSpec, *, part_size: int) -> TableWriter:
    """Return a writer for the table at `root`, which is created if it does not exist.

    Images that are forgotten in this table, or in the one that `--init` names, are erased from what
    the writer writes. Raises `FingerprintError` if the table was made with other settings,
    `RequestError` if its settings cannot be read, or if a forget of this table has not ended.
    """
    store = Store(root)
    writer = TableWriter(root, create_or_check_spec(store, spec), part_size=part_size)
    writer.forgotten = Forgotten.read(store)
    check_finished(store, writer.forgotten)
    if isinstance(init := spec.config.get("init"), str):
        writer.forgotten += Forgotten.read(Store(init))
    return writer
