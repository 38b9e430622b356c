"""Index of committed shards, `_index/shards/`: a cache of the manifests in a few Parquet files.

A row is used only if its manifest still has the etag in the row, by a listing. So a restart lists
the manifests, a thousand per request, and reads only those without a row. Any files of an index may
be deleted at any time.

The name of a file is `_index/<folder>/<first shard>-<hash of the content>.parquet`. A file is
skipped if it cannot be read, its content has another hash, or it has other columns. Columns that
earlier versions did not write get a default.

`CommittedShards` holds 32 bytes per row. It compares ids, etags and states by Python's 64-bit
hashes, whose keys are random in every process. Among a million shards, two have the same hash in
one of about forty million runs; then the manifest is read. A changed state is missed with a
probability of 2⁻⁶⁴.
"""

from __future__ import annotations

import hashlib
import io
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import PipelineError, StorageError, TableError
from pipeline.storage import Shard, Store, slice_number
from pipeline.table.audit import WHOLE, Audit
from pipeline.table.shard_records import ShardRecord, manifest_etags, read_shard_record
from pipeline.table.stats import Counts, Stats

# Shards per index file. Fewer are not written: reading a few manifests is fast.
INDEXED_AT_ONCE = 1000
_FOLDER = "_index/shards/"
_TEXT, _COUNT = pa.large_string(), pa.int64()  # 64-bit offsets: the texts may exceed 2 GiB
_SCHEMA = pa.schema(
    [
        *((name, _TEXT) for name in ("shard", "uri", "etag")),
        *((name, _COUNT) for name in ("size", "samples", "faces", "rejects", "parts")),
        *((name, _TEXT) for name in ("figures", "manifest_etag", "left_out")),
    ]
)
_DEFAULTS = {"left_out": ""}
_THREADS = 16  # index files (about 300 KB each) or manifests that are read at a time
_BATCH = 4096
# Rows of `CommittedShards._indexed`: hash of the shard's id, hash of its state, counts.
_SHARD, _STATE, _SAMPLES, _PARTS = range(4)

_Integers = npt.NDArray[np.int64]


def write_index(store: Store, records: Sequence[ShardRecord]) -> str:
    """Write one file of the index; return its name."""
    return write_rows(store, _FOLDER, [record.to_row() for record in records], _SCHEMA)


def index_rows(store: Store) -> Iterator[list[ShardRecord]]:
    """Yield the rows of each index file; a shard that was done again has old rows too."""
    for _, table in read_tables(store, _FOLDER, _SCHEMA, _DEFAULTS):
        yield [ShardRecord(*row) for row in rows_of(table)]


def shard_records(store: Store, *, by_manifests: bool = False) -> Iterator[ShardRecord]:
    """Yield every committed shard, from the index, or from its manifest if it has no valid row.

    With `by_manifests` the index is ignored.
    """
    etags = dict(manifest_etags(store))
    for record in () if by_manifests else indexed_records(store, etags):
        del etags[record.shard]
        yield record
    with ThreadPoolExecutor(_THREADS) as pool:
        records = pool.map(lambda shard: read_shard_record(store, shard), etags)
        for record, etag in zip(records, etags.values(), strict=True):
            yield replace(record, manifest_etag=etag)


def indexed_records(store: Store, manifests: Mapping[str, str]) -> Iterator[ShardRecord]:
    """Yield one valid row for each of `manifests` (etag by shard id) that has one."""
    done: set[str] = set()
    for records in index_rows(store):
        for record in records:
            if record.manifest_etag == manifests.get(record.shard) and record.shard not in done:
                done.add(record.shard)
                yield record


def table_stats(store: Store) -> Stats:
    """Add up all committed shards; `TableError` if a manifest is damaged.

    Reads the index, and compares rows that `Audit` draws with their manifests. If one of these is
    false, or any row is damaged, all manifests are read instead. Reads no part files.
    """
    audit = Audit(sums=True, whole=WHOLE)
    with suppress(TableError):
        stats = _sum(audit.sample(shard_records(store)))
        if not audit.finds_mismatch(store):
            return stats
    return _sum(shard_records(store, by_manifests=True))


def _sum(records: Iterable[ShardRecord]) -> Stats:
    return sum((record.stats for record in records), Stats())


def forget_index(store: Store) -> None:
    """Remove the index of shards; a run writes it again from the manifests."""
    with suppress(PipelineError):
        for name in store.names(_FOLDER):
            store.remove(name)


def refresh_index(store: Store) -> None:
    """Replace the index rows of manifests that have changed; files without such rows stay.

    Afterwards no file has sums of an earlier state of a shard. Raises `TableError` if a manifest is
    damaged.
    """
    etags = dict(manifest_etags(store))
    for name, table in read_tables(store, _FOLDER, _SCHEMA, _DEFAULTS):
        records = [ShardRecord(*row) for row in rows_of(table)]
        valid = [each for each in records if etags.get(each.shard) == each.manifest_etag]
        if len(valid) == len(records):
            continue
        changed = {each.shard for each in records} - {each.shard for each in valid}
        shards = sorted(changed & etags.keys())
        with ThreadPoolExecutor(_THREADS) as pool:
            read = pool.map(lambda shard: read_shard_record(store, shard), shards)
            valid += [replace(each, manifest_etag=etags[each.shard]) for each in read]
        if valid:
            write_index(store, valid)
        store.remove(name)


class CommittedShards:
    """Shards that have a manifest, by one listing, with their index rows.

    Holds ids and etags of shards without an index row, about 250 bytes each. `distrusted` is set if
    a row that `Audit` drew differs from its manifest: then no row of the index is used.
    """

    def __init__(self, store: Store) -> None:
        self._unindexed: dict[str, str] = {}
        self.slices = array("q")  # numbers of a folder's slices
        audit = Audit()
        indexed = _read_index(store, audit)
        self.distrusted = audit.finds_mismatch(store)
        self._indexed = self._select_listed(store, _EMPTY if self.distrusted else indexed)

    def _select_listed(self, store: Store, indexed: _Integers) -> _Integers:
        """Return the columns of `indexed` [5, n] with a listed manifest; keep the other manifests.

        The result [4, m] is without the hashes of manifests, sorted by the hash of the shard's id.
        """
        manifests, indexed = indexed[-1].copy(), indexed[:-1]
        is_listed = np.zeros(len(manifests), bool)
        listing = manifest_etags(store)
        while batch := list(islice(listing, _BATCH)):
            places, is_indexed = places_of(manifests, [hash(pair) for pair in batch])
            is_listed[places[is_indexed]] = True
            self._unindexed.update(batch[index] for index in np.flatnonzero(~is_indexed))
            numbers = (slice_number(shard_id) for shard_id, _ in batch)
            self.slices.extend(number for number in numbers if number is not None)
        indexed = indexed[:, is_listed]
        return indexed[:, np.argsort(indexed[_SHARD])]

    def __contains__(self, shard_id: object) -> bool:
        return isinstance(shard_id, str) and self.are_committed([shard_id])[0]

    def are_committed(self, shard_ids: Sequence[str]) -> list[bool]:
        """Return, for each shard id, whether it is committed."""
        _, indexed = self._rows(shard_ids)
        pairs = zip(shard_ids, indexed.tolist(), strict=True)
        return [is_indexed or shard_id in self._unindexed for shard_id, is_indexed in pairs]

    def _rows(self, shard_ids: Sequence[str]) -> tuple[_Integers, npt.NDArray[np.bool_]]:
        """Return columns of shards [4, n], arbitrary ones unless indexed, and which are that."""
        places, indexed = places_of(self._indexed[_SHARD], [hash(shard) for shard in shard_ids])
        columns = self._indexed if self._indexed.size else np.zeros((4, 1), np.int64)
        return columns[:, places], indexed

    def find(self, shards: Sequence[Shard]) -> list[Counts | None]:
        """Return samples and parts of each shard; None unless indexed in its present state."""
        rows, indexed = self._rows([shard.shard_id for shard in shards])
        states = [_state(shard.source, shard.etag, shard.size) for shard in shards]
        same = indexed & (rows[_STATE] == states)
        columns = (rows[_SAMPLES].tolist(), rows[_PARTS].tolist(), same.tolist())
        return [
            Counts(shards=1, samples=samples, parts=parts) if is_same else None
            for samples, parts, is_same in zip(*columns, strict=True)
        ]

    def part_counts(self, shard_ids: Sequence[str]) -> npt.NDArray[np.int64]:
        """Return the number of parts of each shard; -1 for a shard without an index row."""
        rows, indexed = self._rows(shard_ids)
        return np.where(indexed, rows[_PARTS], -1)

    def unindexed_etag(self, shard_id: str) -> str | None:
        """Return the etag of the shard's manifest, if it has no index row."""
        return self._unindexed.get(shard_id)


def _read_index(store: Store, audit: Audit) -> _Integers:
    """Read the index: its `_columns` [5, n], sorted by the hash of the manifest."""
    columns_by_file = [_EMPTY]
    for records in index_rows(store):
        audit.add(records)
        columns_by_file.append(_columns(records))
    columns = np.concatenate(columns_by_file, axis=1)
    return columns[:, np.argsort(columns[-1])]


_EMPTY = np.empty((5, 0), np.int64)


def _columns(records: Sequence[ShardRecord]) -> _Integers:
    """Return the hashes of shard and state, samples, parts, hash of the manifest: [5, n]."""
    rows = [
        (
            hash(record.shard),
            _state(record.uri, record.etag, record.size),
            record.samples,
            record.n_parts,
            hash((record.shard, record.manifest_etag)),
        )
        for record in records
    ]
    return np.array(rows, np.int64).reshape(-1, 5).T


def _state(uri: str, etag: str, size: int) -> int:
    return hash((uri, etag, size))


def places_of(
    sorted_keys: _Integers, keys: Sequence[int]
) -> tuple[_Integers, npt.NDArray[np.bool_]]:
    """Return the position of each key in `sorted_keys`, and whether it is there: [n] each."""
    searched = np.array(keys, np.int64)
    places = np.searchsorted(sorted_keys, searched)
    if not len(sorted_keys):
        return places, np.zeros(len(keys), bool)
    places = np.minimum(places, len(sorted_keys) - 1)
    return places, sorted_keys[places] == searched


def write_rows(
    store: Store, folder: str, rows: Sequence[Mapping[str, Any]], schema: pa.Schema
) -> str:
    """Write rows, which have a column `shard`, as one file of an index; return its name."""
    rows = sorted(rows, key=lambda row: str(row["shard"]))
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink)
    content = sink.getvalue()
    name = f"{folder}{rows[0]['shard']}-{_digest(content)}.parquet"
    store.put(name, content)
    return name


def read_tables(
    store: Store, folder: str, schema: pa.Schema, defaults: Mapping[str, Any] | None = None
) -> Iterator[tuple[str, pa.Table]]:
    """Yield name and content of the index files that have this schema.

    `defaults` are the values of columns that a file may lack.
    """
    names: list[str] = []
    with suppress(StorageError):  # an index is a cache
        names = store.names(folder)
    with ThreadPoolExecutor(_THREADS) as pool:
        for first in range(0, len(names), _THREADS):
            group = names[first : first + _THREADS]
            tables = pool.map(lambda name: _read(store, name, schema, defaults or {}), group)
            for name, table in zip(group, tables, strict=True):
                if table is not None:
                    yield name, table


def rows_of(table: pa.Table) -> Iterator[tuple[Any, ...]]:
    """Yield the rows, in the order of the columns."""
    return zip(*(column.to_pylist() for column in table.columns), strict=True)


def _read(
    store: Store, name: str, schema: pa.Schema, defaults: Mapping[str, Any]
) -> pa.Table | None:
    try:
        content = store.get(name)
        if not name.endswith(f"-{_digest(content)}.parquet"):
            return None
        table = pq.ParquetFile(io.BytesIO(content)).read()
    except (pa.ArrowException, StorageError):
        return None
    for place, field in enumerate(schema):
        if field.name in defaults and field.name not in table.column_names:
            column = pa.repeat(pa.scalar(defaults[field.name], field.type), len(table))
            table = table.add_column(place, field, column)
    return table if table.schema.equals(schema) else None


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
