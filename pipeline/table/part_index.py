"""What is known of parts whose shards are not committed, in few files: `_index/parts/`.

A part's footer is the truth. A line is believed only while both files of its part are the objects
that it was made from, by the etags that a listing shows, and its stamp is the one that is asked
for. So a restart over many open parts reads no footers but those of the last few hundred parts,
and the commit of their shards need not read the files for their SHA-256.

A file goes when all its shards are committed, or when a commit finds that the parts of one of them
are not what was believed: the next run reads their footers.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from contextlib import suppress
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import PipelineError
from pipeline.storage import Store
from pipeline.table.index_files import put_rows, read_tables, rows_of, schema_of
from pipeline.table.parts import PartSummary, Stamp

# Parts of one file. Fewer are not written: reading their footers takes a second.
PARTS_INDEXED_AT_ONCE = 1000
_FOLDER = "_index/parts/"

# What must be the same for a part to be the one that was written: the digest of its stamp, and the
# etags of its latents and its rejects.
PartKey = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class PartEntry:
    """What a restart has to know of a part; `stamp` is its digest."""

    shard: str
    part: int
    stamp: str
    samples: int
    faces: int
    rejects: int
    latents_sha256: str
    rejects_sha256: str
    latents_etag: str
    rejects_etag: str
    figures: str

    @classmethod
    def of(cls, stamp: Stamp, summary: PartSummary, etags: tuple[str, str]) -> PartEntry:
        """The entry of a part whose files, latents and rejects, the store knows under `etags`."""
        return cls(
            shard=stamp.shard,
            stamp=stamp.digest,
            latents_etag=etags[0],
            rejects_etag=etags[1],
            **summary.to_dict(),
        )

    @property
    def key(self) -> PartKey:
        """What this is true of."""
        return self.stamp, self.latents_etag, self.rejects_etag

    @property
    def summary(self) -> PartSummary:
        """What is true of that part."""
        return PartSummary(
            part=self.part,
            samples=self.samples,
            faces=self.faces,
            rejects=self.rejects,
            latents_sha256=self.latents_sha256,
            rejects_sha256=self.rejects_sha256,
            figures=self.figures,
        )


def part_entries(store: Store) -> Iterator[PartEntry]:
    """Return all that the index says, of parts that are as they were or not."""
    for _, table in read_tables(store, _FOLDER, PartEntry):
        yield from (PartEntry(*row) for row in rows_of(table))


class KnownParts:
    """What the part index said of open shards when it was read; some 800 bytes a part."""

    def __init__(self, tables: list[pa.Table]) -> None:
        empty = schema_of(PartEntry).empty_table()
        table = pa.concat_tables([empty, *tables]).sort_by("shard")
        runs = pc.run_end_encode(table["shard"].combine_chunks())
        ends = runs.run_ends.to_pylist()
        self._table = table
        self._rows = dict(
            zip(runs.values.to_pylist(), zip([0, *ends], ends, strict=False), strict=True)
        )

    def of(self, shard_id: str) -> dict[PartKey, PartSummary]:
        """What is said of the parts of a shard."""
        first, end = self._rows.get(shard_id, (0, 0))
        entries = (PartEntry(*row) for row in rows_of(self._table.slice(first, end - first)))
        return {entry.key: entry.summary for entry in entries}


class PartIndex:
    """The part index of one run: what earlier runs left, and what this one adds and removes.

    Holds the names of its files with the open shards of each, and the entries of the next file.
    Nothing matters enough to fail: what cannot be written or removed is left to the next run.
    """

    def __init__(self, store: Store, *, read_only: bool = False) -> None:
        """With `read_only` nothing is written and nothing removed."""
        self.store, self.read_only = store, read_only
        self._files: dict[str, set[str]] = {}
        self._waiting: dict[str, list[PartEntry]] = {}

    def read(self, committed: Container[str]) -> KnownParts:
        """What the files say of shards that are not committed; those of which none is open go."""
        tables = []
        for name, table in read_tables(self.store, _FOLDER, PartEntry):
            shards = table["shard"].unique().to_pylist()
            self._files[name] = still_open = {one for one in shards if one not in committed}
            if still_open:
                tables.append(table.filter(pc.is_in(table["shard"], pa.array(sorted(still_open)))))
        self._remove_done()
        return KnownParts(tables)

    def add(self, entry: PartEntry) -> None:
        """Note a part that was written and whose shard is open."""
        self._waiting.setdefault(entry.shard, []).append(entry)
        if self.read_only or sum(map(len, self._waiting.values())) < PARTS_INDEXED_AT_ONCE:
            return
        entries = [one for several in self._waiting.values() for one in several]
        with suppress(PipelineError):
            self._files[put_rows(self.store, _FOLDER, entries)] = set(self._waiting)
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
