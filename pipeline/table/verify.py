"""The check that a table keeps its promises."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import StorageError, TableError
from pipeline.storage import Store
from pipeline.table.committed import places_of
from pipeline.table.description import Description
from pipeline.table.figures import Figures
from pipeline.table.manifests import ShardManifest, manifest_ids, read_manifest
from pipeline.table.parts import LATENTS, REJECTS, PartSummary, decode_metadata, part_name
from pipeline.table.schema import rejects_schema

_THREADS = 8
_BATCH = 4096
_AT_ONCE = 256
_COUNTS = ("samples", "faces", "rejects")


def verify_table(store: Store, description: Description, *, checksums: bool) -> dict[str, int]:
    """Check everything that a table promises; the counts of what it holds.

    Every shard's manifest agrees with its part files (present, SHA-256, schema, stamp, row
    counts); samples in = samples with a latents row + samples with reject rows alone; no face is
    there twice; no part file belongs to no committed shard; the sums that the card is made of are
    those of the parts. Without `checksums` the codes are not read, only footers and keys. Raises
    `TableError` with the first problem and their number.

    The counts: `shards`, `parts`, `samples`, `faces`, `rejects`, `samples_with_faces`,
    `samples_rejected`.
    """
    totals = dict.fromkeys(
        ("shards", "parts", *_COUNTS, "samples_with_faces", "samples_rejected"), 0
    )
    problems: list[str] = []
    expected = array("q")  # hashes: 8 bytes a file, of which there are two for a few hundred images
    check = _ShardCheck(store, description, checksums)
    shards = manifest_ids(store)
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(shards), _AT_ONCE):  # a pool takes all that it is given at once
            for counts, names, found in pool.map(check, shards[start : start + _AT_ONCE]):
                expected.extend(map(hash, names))
                problems += found
                totals = {name: totals[name] + counts.get(name, 0) for name in totals}
    for name in sorted(_unexpected(store, np.sort(np.frombuffer(expected, np.int64)))):
        problems.append(
            f"'{name}' belongs to no committed shard (an interrupted run? run the job again)"
        )
    if problems:
        more = f" (and {len(problems) - 1} more problems)" if len(problems) > 1 else ""
        raise TableError(f"the table '{store.root}' is not sound: {problems[0]}{more}")
    return totals


def _unexpected(store: Store, hashes: NDArray[np.int64]) -> Iterator[str]:
    """The names of part files whose hashes are not among these, sorted."""
    names = chain(store.each_name(f"{LATENTS}/"), store.each_name(f"{REJECTS}/"))
    while batch := list(islice(names, _BATCH)):
        _, known = places_of(hashes, [hash(name) for name in batch])
        yield from (name for name, is_known in zip(batch, known, strict=True) if not is_known)


class _ShardCheck:
    """One shard at a time: counts, the names of its files, and what is wrong."""

    def __init__(self, store: Store, description: Description, checksums: bool) -> None:
        self.store = store
        self.checksums = checksums
        self.fingerprint = description.fingerprint
        self.schemas = {LATENTS: description.columns.latents_schema(), REJECTS: rejects_schema()}

    def __call__(self, shard: str) -> tuple[dict[str, int], set[str], list[str]]:
        manifest = read_manifest(self.store, shard)
        names = {
            part_name(kind, shard, part.part)
            for kind in (LATENTS, REJECTS)
            for part in manifest.parts
        }
        try:
            return self._counts(manifest), names, []
        except (TableError, StorageError) as error:
            return {}, names, [str(error)]
        except UnicodeDecodeError:
            return {}, names, [f"shard '{shard}' holds text that is not UTF-8"]

    def _counts(self, manifest: ShardManifest) -> dict[str, int]:
        keys: dict[str, set[str]] = {LATENTS: set(), REJECTS: set()}
        ids: dict[str, set[Any]] = {LATENTS: set(), REJECTS: set()}
        rows = {LATENTS: 0, REJECTS: 0}
        figures = []
        for part in manifest.parts:
            for kind in (LATENTS, REJECTS):
                table = self._columns(manifest, part, kind)
                keys[kind] |= set(table["key"].to_pylist())
                ids[kind] |= _ids(table, kind)
                rows[kind] += table.num_rows
                if kind == LATENTS:
                    figures.append(_figures(table, part_name(kind, manifest.shard, part.part)))
        shard = manifest.shard
        for kind in (LATENTS, REJECTS):
            _expect(len(ids[kind]) == rows[kind], f"shard '{shard}' holds rows of {kind} twice")
        rejected = keys[REJECTS] - keys[LATENTS]
        counts = {
            "shards": 1,
            "parts": len(manifest.parts),
            "samples": len(keys[LATENTS]) + len(rejected),
            "faces": rows[LATENTS],
            "rejects": rows[REJECTS],
            "samples_with_faces": len(keys[LATENTS]),
            "samples_rejected": len(rejected),
        }
        for name in _COUNTS:
            said = getattr(manifest, name)
            _expect(
                counts[name] == said,
                f"shard '{shard}' holds {counts[name]} {name}, its manifest says {said}",
            )
        _expect(
            Figures.total(figures) == manifest.figures,
            f"the files of shard '{shard}' have other figures than its manifest",
        )
        return counts

    def _columns(self, manifest: ShardManifest, part: PartSummary, kind: str) -> pa.Table:
        """What names the rows of a part file, once its bytes, schema and stamp are found right."""
        name = part_name(kind, manifest.shard, part.part)
        digest = part.latents_sha256 if kind == LATENTS else part.rejects_sha256
        with self._file(name, digest) as source:
            try:
                parquet = pq.ParquetFile(source)
                table = parquet.read(["image_id", "shard", "key", "face_index"], use_threads=False)
            except pa.ArrowException as error:
                raise TableError(f"'{name}' is damaged: {error}") from error
            schema = parquet.schema_arrow
        _expect(schema.remove_metadata().equals(self.schemas[kind]), f"'{name}' has other columns")
        stamp = decode_metadata(schema.metadata)
        wanted = {
            "fingerprint": self.fingerprint,
            "shard_etag": manifest.etag,
            "shard": manifest.shard,
            "part": part.part,
        }
        for field, value in wanted.items():
            _expect(stamp.get(field) == value, f"'{name}' was made with another {field}")
        _expect(set(table["shard"].to_pylist()) <= {manifest.shard}, f"'{name}' has foreign rows")
        return table

    @contextmanager
    def _file(self, name: str, digest: str) -> Iterator[Any]:
        if not self.checksums:
            with self.store.open(name) as file:
                yield file
            return
        content = self.store.get(name)
        found = hashlib.sha256(content).hexdigest()
        _expect(found == digest, f"'{name}' is not the file that its manifest names (SHA-256)")
        yield pa.BufferReader(content)


def _ids(table: pa.Table, kind: str) -> set[Any]:
    """What tells its rows apart: of rejects not their id, which 'a#0' shares with face 0 of 'a'."""
    if kind == LATENTS:
        return set(table["image_id"].to_pylist())
    return set(zip(table["key"].to_pylist(), table["face_index"].to_pylist(), strict=True))


def _figures(latents: pa.Table, name: str) -> Figures:
    try:
        return Figures.from_dict(decode_metadata(latents.schema.metadata).get("figures"))
    except TypeError as error:
        raise TableError(f"'{name}': {error}") from error


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise TableError(otherwise)
