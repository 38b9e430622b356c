"""Verification of a table: manifests, part files, index and spec agree with each other."""

from __future__ import annotations

import hashlib
import os
import shlex
from array import array
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import AccessError, RequestError, StorageError, TableError
from pipeline.storage import Store, is_local
from pipeline.table.evidence import (
    check_footer,
    check_manifest,
    check_sources,
    check_spec,
    expect,
    is_in_input,
)
from pipeline.table.forgetting.forgotten import Forgotten, check_finished, deciding_columns
from pipeline.table.parts import (
    COUNTS,
    LATENTS,
    REJECTS,
    PartRecord,
    damage_reported,
    decode_metadata,
    part_name,
    part_names,
    stats_in,
)
from pipeline.table.schema import rejects_schema
from pipeline.table.shard_index import index_rows, places_of
from pipeline.table.shard_records import ShardRecord, manifest_etags, read_shard_record
from pipeline.table.spec import TableSpec
from pipeline.table.stats import Stats

_THREADS = 8
_BATCH = 4096
_AT_ONCE = 256  # shards that are queued for the threads
_NAMING = ["image_id", "shard", "key", "face_index", "source_uri"]


def verify_table(store: Store, spec: TableSpec, *, checksums: bool) -> dict[str, int]:
    """Check that a table is consistent; return its counts.

    The counts are `shards`, `parts`, `samples`, `faces`, `rejects`, `samples_with_faces`,
    `samples_rejected`. Checked are:

    * Each manifest agrees with its part files (existence, SHA-256, schema, metadata, metrics,
      counts), with the source of its rows, and with the table's fingerprint. Each sample has
      latents rows or, if not, reject rows; no face is stored twice; the shard's figures, of which
      the card is made, are the sums over its parts.
    * Every file at any depth of `latents/` and `rejects/` belongs to a committed shard.
    * Every shard came from the table's input, if that is a folder, a shard file or an image.
    * `_table.json` agrees with itself, with the footers, and with the model's bundle, if a bundle
      of the same weights is on this machine.
    * No row is of an image that was forgotten in this table, and every forget has ended.
    * Every row of the index that a restart or the card would use agrees with its manifest.

    Without `checksums` only footers and keys are read, not codes and weights. Raises `TableError`
    with the first problem and the number of problems.

    Not checked, because nothing else in the table repeats it: the numbers in rows beyond the sums;
    `size` and `left_out` of a record, and its `etag` against the input, which is not read; `config`
    where settings, columns and layout do not repeat it, and the model's notes; an input that is a
    pattern, a list, or not UTF-8; `limit`, which is exceeded if files were added before others of
    the input; the records in `_runs/`; the card, which is generated from the manifests;
    `_index/parts/`, which a commit compares with the footers (except SHA-256). A consistent forgery
    of all documents and files of a shard is not detected.
    """
    totals = dict.fromkeys(
        ("shards", "parts", *COUNTS, "samples_with_faces", "samples_rejected"), 0
    )
    problems: list[str] = []
    expected = array("q")  # hashes of file names: 16 bytes per part
    forgotten = Forgotten.read(store)
    check = _ShardCheck(store, spec, checksums, forgotten)
    etags = dict(manifest_etags(store))
    shards = sorted(etags)
    index_check = _IndexCheck(etags)
    try:
        check_finished(store, forgotten)
    except RequestError as error:
        problems.append(str(error))
    try:
        check_spec(store, spec, weights=checksums)
    except TableError as error:
        problems.append(str(error))
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(shards), _AT_ONCE):  # `pool.map` queues all its arguments at once
            for record, counts, names, errors in pool.map(check, shards[start : start + _AT_ONCE]):
                index_check.add(record)
                expected.extend(map(hash, names))
                problems += errors
                totals = {name: totals[name] + counts.get(name, 0) for name in totals}
    for name in sorted(_unexpected(store, np.sort(np.frombuffer(expected, np.int64)))):
        problems.append(
            f"'{name}' belongs to no committed shard (an interrupted run? run the job again)"
        )
    problems += [*_linked_folders(store), *index_check.problems(store)]
    if check.outside is not None:
        problems.append(
            f"a shard came from '{check.outside}', which is not in the table's input "
            f"'{spec.layout.get('input')}'"
        )
    if problems:
        more = f" (and {len(problems) - 1} more problems)" if len(problems) > 1 else ""
        raise TableError(f"the table '{store.root}' is not sound: {problems[0]}{more}")
    return totals


def _unexpected(store: Store, hashes: NDArray[np.int64]) -> Iterator[str]:
    """Yield the names of part files whose hashes are not among the sorted `hashes`."""
    names = chain(store.each_name(f"{LATENTS}/"), store.each_name(f"{REJECTS}/"))
    while batch := list(islice(names, _BATCH)):
        _, expected = places_of(hashes, [hash(name) for name in batch])
        pairs = zip(batch, expected, strict=True)
        yield from (name for name, is_expected in pairs if not is_expected)


def _linked_folders(store: Store) -> Iterator[str]:
    """Yield a problem for each link to a folder: some readers follow it, but listings do not."""
    if not is_local(store.root):
        return
    for kind in (LATENTS, REJECTS):
        for folder, below, _ in os.walk(store.path(kind)):
            for name in below:
                if (Path(folder) / name).is_symlink():
                    yield f"'{kind}/{name}' is a link to a folder, which belongs to no shard"


class _IndexCheck:
    """Hashes of the correct index rows, to compare the index with; 8 bytes per shard."""

    def __init__(self, etags: Mapping[str, str]) -> None:
        self._etags = etags
        self._hashes = array("q")

    def add(self, record: ShardRecord) -> None:
        """Add the correct index row of a shard."""
        self._hashes.append(_row_hash(replace(record, manifest_etag=self._etags[record.shard])))

    def problems(self, store: Store) -> Iterator[str]:
        """Yield a problem for each index row that a restart would use and that is wrong."""
        correct = np.sort(np.frombuffer(self._hashes, np.int64))
        for records in index_rows(store):
            used = [row for row in records if self._etags.get(row.shard) == row.manifest_etag]
            _, matches = places_of(correct, list(map(_row_hash, used)))
            for record, is_correct in zip(used, matches, strict=True):
                if not is_correct:
                    yield (
                        f"the index row of shard '{record.shard}' differs from its manifest: "
                        "delete the folder _index, which the next run writes again"
                    )


def _row_hash(record: ShardRecord) -> int:
    return hash(tuple(record.to_row().values()))


class _ShardCheck:
    """Check of one shard per call: return its record, counts, file names and errors."""

    def __init__(
        self, store: Store, spec: TableSpec, checksums: bool, forgotten: Forgotten
    ) -> None:
        self.store = store
        self.forgotten = forgotten
        self.checksums = checksums
        self.spec = spec
        self.outside: str | None = None  # URI of a shard that is not in the input
        self.schemas = {LATENTS: spec.columns.latents_schema(), REJECTS: rejects_schema()}

    def __call__(self, shard: str) -> tuple[ShardRecord, dict[str, int], set[str], list[str]]:
        record = read_shard_record(self.store, shard)
        names = {name for part in record.parts for name in part_names(shard, part.part)}
        if not is_in_input(self.spec, record.uri):
            self.outside = record.uri
        try:
            check_manifest(record, self.spec)
            return record, self._counts(record), names, []
        except AccessError:
            raise  # not a fault of the table
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
                part_keys = set(table["key"].to_pylist())
                keys[kind] |= part_keys
                own |= part_keys
                stated = part.faces if kind == LATENTS else part.rejects
                _expect_count(record.shard, part.part, kind, table.num_rows, stated)
                check_sources(record, pc.unique(table["source_uri"]).to_pylist())
                ids[kind] |= _ids(table, kind)
                rows[kind] += table.num_rows
                if kind == LATENTS:
                    metadata = decode_metadata(table.schema.metadata)
                    total += stats_in(metadata, part_name(kind, record.shard, part.part))
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
        for name in COUNTS:
            stated = getattr(record, name)
            expect(
                counts[name] == stated,
                f"shard '{shard}' holds {counts[name]} {name}, its manifest says {stated}",
            )
        expect(
            total.figures_text() == record.figures,
            f"the files of shard '{shard}' have other figures than its manifest",
        )
        return counts

    def _columns(self, record: ShardRecord, part: PartRecord, kind: str) -> pa.Table:
        """Check bytes, schema and metadata of a part file; return the columns that name rows."""
        name = part_name(kind, record.shard, part.part)
        digest = part.latents_sha256 if kind == LATENTS else part.rejects_sha256
        with self._file(name, digest) as source, damage_reported(name):
            parquet = pq.ParquetFile(source)
            columns = {*_NAMING, *(deciding_columns(kind) if self.forgotten else ())}
            table = parquet.read(list(columns), use_threads=False)
            schema = parquet.schema_arrow
        expect(schema.remove_metadata().equals(self.schemas[kind]), f"'{name}' has other columns")
        counts = {name: getattr(part, name) for name in COUNTS}
        expected = asdict(record.part_key(part.part)) | counts
        check_footer(name, decode_metadata(schema.metadata), expected, self.spec.metrics)
        expect(set(table["shard"].to_pylist()) <= {record.shard}, f"'{name}' has foreign rows")
        if self.forgotten:
            expect(
                not any(self.forgotten.levels(table)),
                f"'{name}' has rows of a forgotten image: run `restyle forget --table "
                f"{shlex.quote(self.store.root)}`, which erases them",
            )
        return table

    @contextmanager
    def _file(self, name: str, digest: str) -> Iterator[Any]:
        if not self.checksums:
            with self.store.open(name) as file:
                yield file
            return
        content = self.store.get(name)
        actual = hashlib.sha256(content).hexdigest()
        expect(actual == digest, f"'{name}' is not the file that its manifest names (SHA-256)")
        yield pa.BufferReader(content)


def _ids(table: pa.Table, kind: str) -> set[Any]:
    """Return the unique keys of the rows.

    For rejects these are not the ids: the id of sample 'a#0' is also that of face 0 of sample 'a'.
    """
    if kind == LATENTS:
        return set(table["image_id"].to_pylist())
    return set(zip(table["key"].to_pylist(), table["face_index"].to_pylist(), strict=True))


def _expect_count(shard: str, part: int, unit: str, count: int, stated: int) -> None:
    expect(
        count == stated,
        f"part {part} of shard '{shard}' holds {count} {unit}, its manifest says {stated}",
    )
