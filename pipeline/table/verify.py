"""The check that a table keeps its promises."""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import AccessError, StorageError, TableError
from pipeline.storage import Store, is_local
from pipeline.table.evidence import (
    check_footer,
    check_inputs,
    check_manifest,
    check_sources,
    check_spec,
    expect,
    is_in_input,
)
from pipeline.table.parts import LATENTS, REJECTS, PartRecord, decode_metadata, part_name
from pipeline.table.schema import rejects_schema
from pipeline.table.shard_index import index_rows, places_of
from pipeline.table.shard_records import ShardRecord, manifest_etags, read_shard_record
from pipeline.table.spec import TableSpec
from pipeline.table.stats import Stats

_THREADS = 8
_BATCH = 4096
_AT_ONCE = 256
_COUNTS = ("samples", "faces", "rejects")
_NAMING = ["image_id", "shard", "key", "face_index", "source_uri"]


def verify_table(store: Store, spec: TableSpec, *, checksums: bool) -> dict[str, int]:
    """Check everything that a table promises; the counts of what it holds.

    * Every shard's manifest agrees with its part files (present, SHA-256, schema, stamp, metrics,
      counts of each part), with the places that its rows came from, and with the table's
      fingerprint; samples in = samples with a latents row + samples with reject rows alone; no
      face is there twice; the sums that the card is made of are those of the parts.
    * No file at any depth of `latents/` and `rejects/` belongs to no committed shard.
    * Every shard came from the table's input, where that is a folder, a shard file or an image.
    * `_table.json` agrees with itself, with the footers, and with the model's bundle, where that
      is on this machine with the same weights.
    * Every line of the index that a restart or the card would believe says what its manifest says.

    Without `checksums` codes and weights are not read, only footers and keys. Raises `TableError`
    with the first problem and their number.

    Not checked, as nothing else in the table says the same: the rows' numbers beyond the sums;
    `size` and `left_out` of a record, and its `etag` against the input, which is not read;
    `config` but for what settings, columns and layout repeat, and the model's notes; an input that
    is a pattern, a list, or no UTF-8; `limit`, which an input that grew at its front exceeds; the
    accounts in `_runs/`; the card, which is written anew from the manifests; `_index/parts/`, which
    a commit compares with the footers, and its SHA-256 only here. Who writes all documents and
    files of a shard alike makes a table that is sound.

    The counts: `shards`, `parts`, `samples`, `faces`, `rejects`, `samples_with_faces`,
    `samples_rejected`.
    """
    totals = dict.fromkeys(
        ("shards", "parts", *_COUNTS, "samples_with_faces", "samples_rejected"), 0
    )
    problems: list[str] = []
    expected = array("q")  # hashes: 8 bytes a file, of which there are two for a few hundred images
    check = _ShardCheck(store, spec, checksums)
    etags = dict(manifest_etags(store))
    shards = sorted(etags)
    lines = _Lines(etags)
    try:
        check_spec(store, spec, weights=checksums)
    except TableError as error:
        problems.append(str(error))
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(shards), _AT_ONCE):  # a pool takes all that it is given at once
            for record, counts, names, found in pool.map(check, shards[start : start + _AT_ONCE]):
                lines.add(record)
                expected.extend(map(hash, names))
                problems += found
                totals = {name: totals[name] + counts.get(name, 0) for name in totals}
    for name in sorted(_unexpected(store, np.sort(np.frombuffer(expected, np.int64)))):
        problems.append(
            f"'{name}' belongs to no committed shard (an interrupted run? run the job again)"
        )
    problems += [*_linked_folders(store), *lines.lies(store)]
    try:
        check_inputs(spec, check.outside)
    except TableError as error:
        problems.append(str(error))
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


def _linked_folders(store: Store) -> Iterator[str]:
    """Problems: links to folders, which some readers follow and no listing does."""
    if not is_local(store.root):
        return
    for kind in (LATENTS, REJECTS):
        for folder, below, _ in os.walk(store.path(kind)):
            for name in below:
                if (Path(folder) / name).is_symlink():
                    yield f"'{kind}/{name}' is a link to a folder, which belongs to no shard"


class _Lines:
    """The lines that the index should have: 8 bytes a shard."""

    def __init__(self, etags: Mapping[str, str]) -> None:
        self._etags = etags
        self._hashes = array("q")

    def add(self, record: ShardRecord) -> None:
        """Note what the index may say of a shard."""
        self._hashes.append(_row_hash(replace(record, manifest_etag=self._etags[record.shard])))

    def lies(self, store: Store) -> Iterator[str]:
        """Problems: lines that a restart would believe, and that are not true."""
        true = np.sort(np.frombuffer(self._hashes, np.int64))
        for records in index_rows(store):
            believed = [one for one in records if self._etags.get(one.shard) == one.manifest_etag]
            _, known = places_of(true, list(map(_row_hash, believed)))
            for record, is_true in zip(believed, known, strict=True):
                if not is_true:
                    yield (
                        f"the index says of shard '{record.shard}' what its manifest does not say: "
                        "delete the folder _index, which the next run makes again"
                    )


def _row_hash(record: ShardRecord) -> int:
    return hash(tuple(record.to_row().values()))


class _ShardCheck:
    """One shard at a time: record, counts, the names of its files, and what is wrong."""

    def __init__(self, store: Store, spec: TableSpec, checksums: bool) -> None:
        self.store = store
        self.checksums = checksums
        self.spec = spec
        self.fingerprint = spec.fingerprint
        self.outside: str | None = None  # the URI of a shard that does not lie in the input
        self.schemas = {LATENTS: spec.columns.latents_schema(), REJECTS: rejects_schema()}

    def __call__(self, shard: str) -> tuple[ShardRecord, dict[str, int], set[str], list[str]]:
        record = read_shard_record(self.store, shard)
        names = {
            part_name(kind, shard, part.part)
            for kind in (LATENTS, REJECTS)
            for part in record.parts
        }
        if not is_in_input(self.spec, record.uri):
            self.outside = record.uri
        try:
            check_manifest(record, self.spec)
            return record, self._counts(record), names, []
        except AccessError:
            raise  # which says nothing of the table
        except (TableError, StorageError) as error:
            return record, {}, names, [str(error)]
        except UnicodeDecodeError:
            return record, {}, names, [f"shard '{shard}' holds text that is not UTF-8"]

    def _counts(self, record: ShardRecord) -> dict[str, int]:
        keys: dict[str, set[str]] = {LATENTS: set(), REJECTS: set()}
        ids: dict[str, set[Any]] = {LATENTS: set(), REJECTS: set()}
        rows = {LATENTS: 0, REJECTS: 0}
        total = Stats()
        for part in record.parts:
            own: set[str] = set()
            for kind in (LATENTS, REJECTS):
                table = self._columns(record, part, kind)
                keys[kind] |= (found := set(table["key"].to_pylist()))
                own |= found
                said = part.faces if kind == LATENTS else part.rejects
                _expect_count(record.shard, part.part, kind, table.num_rows, said)
                check_sources(record, pc.unique(table["source_uri"]).to_pylist())
                ids[kind] |= _ids(table, kind)
                rows[kind] += table.num_rows
                if kind == LATENTS:
                    total += _stats(table, part_name(kind, record.shard, part.part))
            _expect_count(record.shard, part.part, "samples", len(own), part.samples)
        shard = record.shard
        for kind in (LATENTS, REJECTS):
            expect(len(ids[kind]) == rows[kind], f"shard '{shard}' holds rows of {kind} twice")
        rejected = keys[REJECTS] - keys[LATENTS]
        counts = {
            "shards": 1,
            "parts": len(record.parts),
            "samples": len(keys[LATENTS]) + len(rejected),
            "faces": rows[LATENTS],
            "rejects": rows[REJECTS],
            "samples_with_faces": len(keys[LATENTS]),
            "samples_rejected": len(rejected),
        }
        for name in _COUNTS:
            said = getattr(record, name)
            expect(
                counts[name] == said,
                f"shard '{shard}' holds {counts[name]} {name}, its manifest says {said}",
            )
        expect(
            total.figures_text() == record.figures,
            f"the files of shard '{shard}' have other figures than its manifest",
        )
        return counts

    def _columns(self, record: ShardRecord, part: PartRecord, kind: str) -> pa.Table:
        """What names the rows of a part file, once its bytes, schema and stamp are found right."""
        name = part_name(kind, record.shard, part.part)
        digest = part.latents_sha256 if kind == LATENTS else part.rejects_sha256
        with self._file(name, digest) as source:
            try:
                parquet = pq.ParquetFile(source)
                table = parquet.read(_NAMING, use_threads=False)
            except pa.ArrowException as error:
                raise TableError(f"'{name}' is damaged: {error}") from error
            schema = parquet.schema_arrow
        expect(schema.remove_metadata().equals(self.schemas[kind]), f"'{name}' has other columns")
        wanted = {
            "schema_version": record.schema_version,
            "fingerprint": self.fingerprint,
            "shard_etag": record.etag,
            "shard": record.shard,
            "part": part.part,
            "part_size": record.part_size,
            "samples": part.samples,
            "faces": part.faces,
            "rejects": part.rejects,
        }
        stamp = decode_metadata(schema.metadata)
        check_footer(name, stamp, wanted, self.spec.metrics)
        expect(set(table["shard"].to_pylist()) <= {record.shard}, f"'{name}' has foreign rows")
        return table

    @contextmanager
    def _file(self, name: str, digest: str) -> Iterator[Any]:
        if not self.checksums:
            with self.store.open(name) as file:
                yield file
            return
        content = self.store.get(name)
        found = hashlib.sha256(content).hexdigest()
        expect(found == digest, f"'{name}' is not the file that its manifest names (SHA-256)")
        yield pa.BufferReader(content)


def _ids(table: pa.Table, kind: str) -> set[Any]:
    """What tells its rows apart: of rejects not their id, which 'a#0' shares with face 0 of 'a'."""
    if kind == LATENTS:
        return set(table["image_id"].to_pylist())
    return set(zip(table["key"].to_pylist(), table["face_index"].to_pylist(), strict=True))


def _stats(latents: pa.Table, name: str) -> Stats:
    try:
        return Stats.from_figures(decode_metadata(latents.schema.metadata).get("figures"))
    except TypeError as error:
        raise TableError(f"'{name}': {error}") from error


def _expect_count(shard: str, part: int, what: str, found: int, said: int) -> None:
    expect(
        found == said,
        f"part {part} of shard '{shard}' holds {found} {what}, its manifest says {said}",
    )
