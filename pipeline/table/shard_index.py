"""The table's index of committed shards, `_index/shards/`: a cache of manifests in few files.

A manifest is the truth. A row is believed only while its manifest is the object that it was made
from, by the etag that a listing shows. So a restart lists the manifests, a thousand per request,
and reads only those that are in no index. All or some files of an index may be deleted at any time.

The name of a file is `_index/<folder>/<first shard>-<hash of the content>.parquet`. A file whose
content has another hash, or other columns, is skipped, and so is what cannot be read. Columns that
a file of an earlier version lacks are filled with their default.

Of the rows `CommittedShards` holds 32 bytes per shard: ids, etags and states are compared by
Python's hashes of 64 bits, which chance keys anew in every process. Two of a million shards share
one in one of ten million runs. A shard that is mistaken for another one has its manifest read, and
the state of one that has changed is taken for the old with a probability of 2⁻⁶⁴.
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

# Shards of one file. Fewer are not written: reading a few manifests takes no time.
INDEXED_AT_ONCE = 1000
_FOLDER = "_index/shards/"
_TEXT, _COUNT = pa.large_string(), pa.int64()  # 64-bit offsets: open parts take more than 2 GiB
_SCHEMA = pa.schema(
    [
        *((name, _TEXT) for name in ("shard", "uri", "etag")),
        *((name, _COUNT) for name in ("size", "samples", "faces", "rejects", "parts")),
        *((name, _TEXT) for name in ("figures", "manifest_etag", "left_out")),
    ]
)
_DEFAULTS = {"left_out": ""}
_THREADS = 16  # index files or manifests that are read at a time; a file is about 300 KB
_BATCH = 4096
# Columns of what is known: hash of the shard's id and of its state, counts.
_SHARD, _STATE, _SAMPLES, _PARTS = range(4)

_Integers = npt.NDArray[np.int64]


def write_index(store: Store, records: Sequence[ShardRecord]) -> str:
    """Put one file of the index; return its name."""
    return put_rows(store, _FOLDER, [record.to_row() for record in records], _SCHEMA)


def index_rows(store: Store) -> Iterator[list[ShardRecord]]:
    """Yield what the index says, a file at a time; of a shard done again also what it was."""
    for _, table in read_tables(store, _FOLDER, _SCHEMA, _DEFAULTS):
        yield [ShardRecord(*row) for row in rows_of(table)]


def shard_records(store: Store, *, by_manifests: bool = False) -> Iterator[ShardRecord]:
    """Yield every committed shard, from the index, or from its manifest if it is in none.

    From manifests alone with `by_manifests`, where the index is not to be believed.
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
    """Yield the rows that are true of `manifests` (etag by shard id), once each."""
    done: set[str] = set()
    for records in index_rows(store):
        for record in records:
            if record.manifest_etag == manifests.get(record.shard) and record.shard not in done:
                done.add(record.shard)
                yield record


def table_stats(store: Store) -> Stats:
    """Add up all committed shards; `TableError` if a manifest is damaged.

    From the index, of which `Audit` compares some rows with their manifests; from the manifests
    alone where one of these rows is false, or a row cannot be read. No part file is read.
    """
    audit = Audit(sums=True, whole=WHOLE)
    try:
        stats = _sum(audit.sample(shard_records(store)))
    except TableError:
        return _sum(shard_records(store, by_manifests=True))
    if audit.finds_mismatch(store):
        return _sum(shard_records(store, by_manifests=True))
    return stats


def _sum(records: Iterable[ShardRecord]) -> Stats:
    return sum((record.stats for record in records), Stats())


def forget_index(store: Store) -> None:
    """Remove the index of shards, which a run makes anew from the manifests."""
    with suppress(PipelineError):
        for name in store.names(_FOLDER):
            store.remove(name)


class CommittedShards:
    """The shards that have a manifest, as one listing shows them, and what the index says of them.

    Of shards that are in no index it holds ids and etags, some 250 bytes each. `distrusted` is set
    where a row of the index that `Audit` drew is not what its manifest says: all shards count as
    in no index then.
    """

    def __init__(self, store: Store) -> None:
        self._unindexed: dict[str, str] = {}
        self.slices = array("q")  # numbers of a folder's slices
        audit = Audit()
        indexed = _indexed(store, audit)
        self.distrusted = audit.finds_mismatch(store)
        self._known = self._listed(store, *(_nothing() if self.distrusted else indexed))

    def _listed(self, store: Store, manifests: _Integers, known: _Integers) -> _Integers:
        """Return the columns of `known` whose manifests are there, by shard; note the others."""
        true = np.zeros(len(manifests), bool)
        listing = manifest_etags(store)
        while batch := list(islice(listing, _BATCH)):
            places, found = places_of(manifests, [hash(pair) for pair in batch])
            true[places[found]] = True
            self._unindexed.update(batch[index] for index in np.flatnonzero(~found))
            numbers = (slice_number(shard_id) for shard_id, _ in batch)
            self.slices.extend(number for number in numbers if number is not None)
        known = known[:, true]
        return known[:, np.argsort(known[_SHARD])]

    def __contains__(self, shard_id: object) -> bool:
        return isinstance(shard_id, str) and self.among([shard_id])[0]

    def among(self, shard_ids: Sequence[str]) -> list[bool]:
        """Return, for each shard id, whether it is committed."""
        _, found = places_of(self._known[_SHARD], [hash(shard_id) for shard_id in shard_ids])
        pairs = zip(shard_ids, found.tolist(), strict=True)
        return [is_known or shard_id in self._unindexed for shard_id, is_known in pairs]

    def find(self, shards: Sequence[Shard]) -> list[Counts | None]:
        """Return samples and parts of each shard; None unless indexed as it is in the input."""
        if not self._known.size:
            return [None] * len(shards)
        places, found = places_of(self._known[_SHARD], [hash(shard.shard_id) for shard in shards])
        states = [_state(shard.source, shard.etag, shard.size) for shard in shards]
        same = found & (self._known[_STATE, places] == states)
        counts = self._known[_SAMPLES : _PARTS + 1, places].T.tolist()
        rows = zip(counts, same.tolist(), strict=True)
        return [
            Counts(shards=1, samples=samples, parts=parts) if is_same else None
            for (samples, parts), is_same in rows
        ]

    def part_counts(self, shard_ids: Sequence[str]) -> npt.NDArray[np.int64]:
        """Return how many parts each shard has; -1 where no index says that."""
        places, found = places_of(self._known[_SHARD], [hash(shard_id) for shard_id in shard_ids])
        if not self._known.size:
            return np.full(len(shard_ids), -1, np.int64)
        return np.where(found, self._known[_PARTS, places], -1)

    def unindexed_etag(self, shard_id: str) -> str | None:
        """Return the etag of the shard's manifest, if that is in no index."""
        return self._unindexed.get(shard_id)


def _nothing() -> tuple[_Integers, _Integers]:
    return _EMPTY[-1].copy(), _EMPTY[:-1]


def _indexed(store: Store, audit: Audit) -> tuple[_Integers, _Integers]:
    """Read the index: sorted hashes of id and manifest etag [n], and their columns [4, n]."""
    found = [_EMPTY]
    for records in index_rows(store):
        audit.add(records)
        found.append(_columns(records))
    columns = np.concatenate(found, axis=1)
    columns = columns[:, np.argsort(columns[-1])]
    return columns[-1].copy(), columns[:-1]


_EMPTY = np.empty((5, 0), np.int64)


def _columns(records: Sequence[ShardRecord]) -> _Integers:
    """Return shard, state, samples, parts, manifest: [5, n]."""
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
    """Return the place of each key in `sorted_keys`, and whether it is there: [n] each."""
    sought = np.array(keys, np.int64)
    places = np.searchsorted(sorted_keys, sought)
    if not len(sorted_keys):
        return places, np.zeros(len(keys), bool)
    places = np.minimum(places, len(sorted_keys) - 1)
    return places, sorted_keys[places] == sought


def put_rows(
    store: Store, folder: str, rows: Sequence[Mapping[str, Any]], schema: pa.Schema
) -> str:
    """Put rows, `shard` among their columns, as one file of an index; return its name."""
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
    """Yield name and content of the files of an index that have this schema.

    `defaults` are the values of columns that a file may lack.
    """
    names = _names(store, folder)
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


def _names(store: Store, folder: str) -> list[str]:
    try:
        return store.names(folder)
    except StorageError:
        return []


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
