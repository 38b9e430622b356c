"""Index of the parts of uncommitted shards: `_index/parts/`, a few Parquet files.

It is a cache of footers. A row is used only if both files of its part still have the etags in the
row, by a listing, and the key of the part is the one that the run needs. So a restart over many
open parts reads only the footers of the last few hundred parts, and a commit of their shards does
not read the files for their SHA-256.

An index file is removed when all its shards are committed, or when a commit finds a part that
differs from its row: then the next run reads the footers.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import chain, islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import PipelineError
from pipeline.storage import Store
from pipeline.table.parts import COUNTS, LATENTS, PartRecord, part_name, read_metadata
from pipeline.table.shard_index import read_tables, rows_of, write_rows
from pipeline.table.stats import Counts

# Parts per index file. Fewer are not written: reading their footers takes a second.
PARTS_INDEXED_AT_ONCE = 1000
_FOLDER = "_index/parts/"
_THREADS = 16
# An index lacks fewer than a thousand parts of a run, whose footers are read in about a second.
_READ_FOOTERS = 2000

_SCHEMA = pa.schema(
    [
        ("shard", pa.large_string()),
        ("part", pa.int64()),
        ("stamp", pa.large_string()),
        *((name, pa.int64()) for name in ("samples", "faces", "rejects")),
        *((name, pa.large_string()) for name in ("latents_sha256", "rejects_sha256")),
        *((name, pa.large_string()) for name in ("latents_etag", "rejects_etag", "figures")),
    ]
)

# Digest of a part's key, and the etags of its latents and rejects: a row with other values is of a
# part that is no longer stored.
RowKey = tuple[str, str, str]


def write_part_index(store: Store, parts: Iterable[PartRecord]) -> str:
    """Write one file of the part index; return its name."""
    return write_rows(store, _FOLDER, [vars(part) for part in parts], _SCHEMA)


def indexed_parts(store: Store) -> Iterator[PartRecord]:
    """Yield all rows of the index, also of parts that have changed since."""
    for _, table in read_tables(store, _FOLDER, _SCHEMA):
        yield from (PartRecord(*row) for row in rows_of(table))


def forget_part_index(store: Store) -> None:
    """Remove the index of parts; the next run reads the footers of open parts."""
    for name in store.names(_FOLDER):
        store.remove(name)


def count_open_parts(store: Store, etags: Mapping[str, str]) -> tuple[Counts, bool]:
    """Add up the counts of open parts; `etags` are the etags of their latents files by name.

    Return the counts, and whether they are exact. If there are too many unindexed parts, some are
    read and the counts are scaled up. A part that was removed meanwhile, or is damaged, counts as
    nothing, because the next run does it again.
    """
    unread, total = dict(etags), Counts()
    for part in indexed_parts(store) if unread else ():
        name = part_name(LATENTS, part.shard, part.part)
        if unread.get(name) == part.latents_etag:
            del unread[name]
            total += part.counts
    with ThreadPoolExecutor(_THREADS) as pool:
        total = sum(pool.map(partial(_footer_counts, store), islice(unread, _READ_FOOTERS)), total)
    left = max(0, len(unread) - _READ_FOOTERS)
    return total.scaled(len(etags) / (len(etags) - left)) if left else total, not left


def _footer_counts(store: Store, name: str) -> Counts:
    try:
        metadata = read_metadata(store, name)
    except PipelineError:
        return Counts()
    counts: dict[str, Any] = {name: metadata.get(name) for name in COUNTS}
    is_whole = all(type(count) is int for count in counts.values())
    return Counts(**counts) if is_whole else Counts()


class IndexedParts:
    """Rows of the part index for open shards, as they were read; about 800 bytes per part."""

    def __init__(self, tables: list[pa.Table]) -> None:
        table = pa.concat_tables([_SCHEMA.empty_table(), *tables]).sort_by("shard")
        runs = pc.run_end_encode(table["shard"].combine_chunks())
        ends = runs.run_ends.to_pylist()
        self._table = table
        self._rows = dict(
            zip(runs.values.to_pylist(), zip([0, *ends], ends, strict=False), strict=True)
        )

    def of(self, shard_id: str) -> dict[RowKey, PartRecord]:
        """Return the records of a shard's parts."""
        first, end = self._rows.get(shard_id, (0, 0))
        parts = (PartRecord(*row) for row in rows_of(self._table.slice(first, end - first)))
        return {(part.stamp, part.latents_etag, part.rejects_etag): part for part in parts}


class PartIndex:
    """Part index during one run: files of earlier runs, and the rows that this run adds.

    Holds the names of the index files with their open shards, and the rows of the next file. A file
    that cannot be written or removed is no error: the index is a cache.
    """

    def __init__(self, store: Store, *, read_only: bool = False) -> None:
        """Manage the index at `store`; with `read_only`, write and remove nothing."""
        self.store, self.read_only = store, read_only
        self._files: dict[str, set[str]] = {}
        self._waiting: dict[str, list[PartRecord]] = {}

    def read(self, committed: Container[str]) -> IndexedParts:
        """Read the rows of open shards; remove the files that have none."""
        tables = []
        for name, table in read_tables(self.store, _FOLDER, _SCHEMA):
            shards = table["shard"].unique().to_pylist()
            self._files[name] = still_open = {shard for shard in shards if shard not in committed}
            if still_open:
                tables.append(table.filter(pc.is_in(table["shard"], pa.array(sorted(still_open)))))
        self._remove_done()
        return IndexedParts(tables)

    def add(self, part: PartRecord) -> None:
        """Add the row of a written part of an open shard; a part without etags is skipped."""
        if self.read_only or not (part.latents_etag and part.rejects_etag):
            return
        self._waiting.setdefault(part.shard, []).append(part)
        if sum(map(len, self._waiting.values())) < PARTS_INDEXED_AT_ONCE:
            return
        parts = chain.from_iterable(self._waiting.values())
        with suppress(PipelineError):
            self._files[write_part_index(self.store, parts)] = set(self._waiting)
        self._waiting.clear()

    def close(self, shard_id: str) -> None:
        """Drop the parts of a committed shard."""
        self._waiting.pop(shard_id, None)
        for still_open in self._files.values():
            still_open.discard(shard_id)
        self._remove_done()

    def forget(self, shard_id: str) -> None:
        """Remove every index file with rows of this shard, because one of them is wrong."""
        self._waiting.pop(shard_id, None)
        for still_open in self._files.values():
            if shard_id in still_open:
                still_open.clear()
        self._remove_done()

    def _remove_done(self) -> None:
        for name in [name for name, still_open in self._files.items() if not still_open]:
            del self._files[name]
            if not self.read_only:
                with suppress(PipelineError):
                    self.store.remove(name)
