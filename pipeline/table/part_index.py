"""The index of parts whose shards are not committed, in few files: `_index/parts/`.

A part's footer is the truth. A row is believed only while both files of its part are the objects
that it was made from, by the etags that a listing shows, and its key is the one that is needed.
So a restart over many open parts reads no footers but those of the last few hundred parts, and the
commit of their shards need not read the files for their SHA-256.

A file goes when all its shards are committed, or when a commit finds that the parts of one of them
are not what was believed: the next run reads their footers.
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
from pipeline.table.shard_index import put_rows, read_tables, rows_of
from pipeline.table.stats import Counts

# Parts of one file. Fewer are not written: reading their footers takes a second.
PARTS_INDEXED_AT_ONCE = 1000
_FOLDER = "_index/parts/"
_THREADS = 16
# The index lacks fewer than a thousand parts of a run, which are read in about a second.
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

# What tells whether a row is of a part that is in the table: the digest of its key, and the etags
# of its latents and its rejects.
RowKey = tuple[str, str, str]


def write_part_index(store: Store, parts: Iterable[PartRecord]) -> str:
    """Put one file of the part index; return its name."""
    return put_rows(store, _FOLDER, [part.to_dict() for part in parts], _SCHEMA)


def indexed_parts(store: Store) -> Iterator[PartRecord]:
    """Yield all that the index says, of parts that are as they were or not."""
    for _, table in read_tables(store, _FOLDER, _SCHEMA):
        yield from (PartRecord(*row) for row in rows_of(table))


def count_open_parts(store: Store, etags: Mapping[str, str]) -> tuple[Counts, bool]:
    """Add up latents files and their rejects; `etags` are those of their names.

    Returns the counts, and whether they are exact: scaled up where not all of them were read. A
    part that is gone meanwhile, or damaged, counts nothing: the next run does it again.
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
    counts: dict[str, Any] = {name: int(metadata.get(name) or 0) for name in COUNTS}
    return Counts(**counts)


class IndexedParts:
    """The rows of the part index of open shards when it was read; some 800 bytes per part."""

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
    """The part index of one run: what earlier runs left, and what this one adds and removes.

    Holds the names of its files with the open shards of each, and the entries of the next file.
    Nothing matters enough to fail: what cannot be written or removed is left to the next run.
    """

    def __init__(self, store: Store, *, read_only: bool = False) -> None:
        """With `read_only` nothing is written and nothing removed."""
        self.store, self.read_only = store, read_only
        self._files: dict[str, set[str]] = {}
        self._waiting: dict[str, list[PartRecord]] = {}

    def read(self, committed: Container[str]) -> IndexedParts:
        """Read what the files say of open shards; remove the files without any."""
        tables = []
        for name, table in read_tables(self.store, _FOLDER, _SCHEMA):
            shards = table["shard"].unique().to_pylist()
            self._files[name] = still_open = {one for one in shards if one not in committed}
            if still_open:
                tables.append(table.filter(pc.is_in(table["shard"], pa.array(sorted(still_open)))))
        self._remove_done()
        return IndexedParts(tables)

    def add(self, part: PartRecord) -> None:
        """Note a part that was written and whose shard is open, once its etags are known."""
        if not (part.latents_etag and part.rejects_etag):
            return
        self._waiting.setdefault(part.shard, []).append(part)
        if self.read_only or sum(map(len, self._waiting.values())) < PARTS_INDEXED_AT_ONCE:
            return
        parts = chain.from_iterable(self._waiting.values())
        with suppress(PipelineError):
            self._files[write_part_index(self.store, parts)] = set(self._waiting)
        self._waiting.clear()

    def close(self, shard_id: str) -> None:
        """Forget the parts of a shard that is committed."""
        self._waiting.pop(shard_id, None)
        for still_open in self._files.values():
            still_open.discard(shard_id)
        self._remove_done()

    def forget(self, shard_id: str) -> None:
        """Remove every file that says something of a shard, as not all of it is true."""
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
