"""Forget images: erase their rows from every file of a table.

The list of forgotten images is written first, so that from then on `verify` refuses the table and
no run starts on it, until every row is gone. Then each part that has such a row is rewritten:

1. the manifest of its shard, which names the new content by its SHA-256,
2. its rejects, where an image becomes a reject without a name, and its latents; last the file that
   has the rows.

Each file is replaced at once, so readers always see whole files. A stop at any moment leaves either
rows, which the next call finds by reading the columns that name images, or a part that its manifest
describes. At the end the rows of the index that are out of date, temporary files of writers that
were killed, texts of run records that name the images, and the card are replaced.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import RequestError, TableError
from pipeline.storage import Store, is_local
from pipeline.table.card import write_card
from pipeline.table.forgetting.forget_lock import ForgetLock
from pipeline.table.forgetting.forgotten import KEPT, ForgetList, Forgotten, deciding_columns
from pipeline.table.forgetting.leftovers import blank_mentions
from pipeline.table.part_index import forget_part_index
from pipeline.table.parts import (
    LATENTS,
    REJECTS,
    EncodedPart,
    damage_reported,
    decode_metadata,
    encode_part,
    parse_part_name,
    part_name,
    part_names,
    read_metadata,
    stats_in,
)
from pipeline.table.reader import open_table
from pipeline.table.schema import rejects_schema
from pipeline.table.shard_index import refresh_index
from pipeline.table.shard_records import ShardRecord, manifest_name, read_shard_record
from pipeline.table.spec import read_spec
from pipeline.table.stats import Stats
from pipeline.table.status import active_runs

_THREADS = 16  # files whose columns are read at a time
_BATCH = 1024
_REWRITERS = 4  # shards that are rewritten at a time, one part of each in memory
_TEMPORARY = re.compile(r"\..+\.\d+-[0-9a-f]{8}\.tmp")  # as `Store` names them

_Files = Sequence[tuple[str, bytes]]  # name and content, in the order of writing


@dataclass(frozen=True)
class ForgottenRow:
    """Row of a table whose image is on a list."""

    kind: str  # latents or rejects
    shard: str
    part: int
    image_id: str
    key: str
    uri: str
    sha256: str

    @property
    def names(self) -> tuple[str, ...]:
        """Return all texts that identify the image."""
        return self.image_id, self.key, self.uri, self.sha256


@dataclass(frozen=True)
class Erased:
    """Result of `forget`: rows that were removed, parts and shards that were rewritten."""

    faces: int
    rejects: int
    parts: int
    shards: int
    mentions: tuple[str, ...]  # files that still name an image
    notes: tuple[str, ...] = ()


def forgotten_rows(store: Store, forgotten: Forgotten) -> Iterator[ForgottenRow]:
    """Yield the rows of a table whose image, or face, is forgotten.

    Reads the columns that name images, of all part files, also of those without a manifest. Raises
    `TableError` if a file is damaged.
    """
    if not forgotten:
        return
    names = chain(store.each_name(f"{LATENTS}/"), store.each_name(f"{REJECTS}/"))
    with ThreadPoolExecutor(_THREADS) as pool:
        while batch := list(islice(names, _BATCH)):
            for rows in pool.map(partial(_rows_in, store, forgotten), batch):
                yield from rows


def _rows_in(store: Store, forgotten: Forgotten, name: str) -> list[ForgottenRow]:
    parsed = parse_part_name(name)
    if not parsed:
        return []
    kind = name.split("/", 1)[0]
    columns = ["image_id", "key", *deciding_columns(kind)]
    with store.open(name) as file, damage_reported(store.uri(name)):
        rows = pq.ParquetFile(file).read(columns, use_threads=False)
    levels = forgotten.levels(rows)
    if not any(levels):
        return []
    chosen = rows.filter(pa.array([level != KEPT for level in levels], pa.bool_()))
    return [
        ForgottenRow(
            kind,
            *parsed,
            row["image_id"],
            row["key"],
            row["source_uri"],
            row["source_sha256"] or "",
        )
        for row in chosen.to_pylist()
    ]


def forget(
    store: Store, lists: Sequence[ForgetList] = (), *, ignored_runs: Collection[str] = ()
) -> Erased:
    """Add `lists` to the table's list, and erase the rows of all images on it.

    Without `lists` it does what an interrupted call has left, and erases what a late writer has
    brought back. Repeat it after any failure. Raises `RequestError` if a run seems to write to the
    table, unless it is in `ignored_runs`, or if another forget is running.
    """
    with ForgetLock(store):
        require_no_run(store, ignored_runs)
        for each in lists:
            each.write(store)
        try:
            # A run that has started meanwhile has written its record before it reads the list.
            require_no_run(store, ignored_runs)
        except RequestError:
            for each in lists:
                store.remove(each.name)
            raise
        forgotten = Forgotten.read(store)
        rows = list(forgotten_rows(store, forgotten))
        mentions = blank_mentions(store, {name for row in rows for name in row.names if name})
        parts: dict[str, set[int]] = defaultdict(set)
        for row in rows:
            parts[row.shard].add(row.part)
        with ThreadPoolExecutor(_REWRITERS) as pool:
            list(pool.map(_Eraser(store, forgotten).erase_shard, parts, parts.values()))
        note = _clean_up(store)
        for each in forgotten.unfinished:
            each.finish(store)
    faces = sum(row.kind == LATENTS for row in rows)
    return Erased(
        faces,
        len(rows) - faces,
        sum(map(len, parts.values())),
        len(parts),
        mentions,
        (note,) if note else (),
    )


def require_no_run(store: Store, ignored_runs: Collection[str] = ()) -> None:
    """Raise `RequestError` if a run seems to write to the table."""
    for run in active_runs(store):
        if run not in ignored_runs:
            raise RequestError(
                f"run {run} seems to write to the table '{store.root}': stop it or wait for its "
                "end; if it was killed, wait ten minutes after its last sign, or add "
                f"--ignore-run {run}"
            )


class _Eraser:
    """Rewrites parts without their forgotten rows; may be used by several threads."""

    def __init__(self, store: Store, forgotten: Forgotten) -> None:
        self.store, self.forgotten = store, forgotten
        columns = read_spec(store).columns
        self._schemas = {LATENTS: columns.latents_schema(), REJECTS: rejects_schema()}

    def erase_shard(self, shard_id: str, parts: set[int]) -> None:
        """Rewrite parts of a shard, and its manifest if it is committed."""
        if not self.store.exists(manifest_name(shard_id)):
            for part in sorted(parts):
                self._erase_open_part(shard_id, part)
            return
        record = read_shard_record(self.store, shard_id)
        with ThreadPoolExecutor(_THREADS) as pool:
            names = [part_name(LATENTS, shard_id, part.part) for part in record.parts]
            stats = list(pool.map(self._stats_of, names))
        for part in sorted(parts):
            if part < record.n_parts:
                record = self._erase_part(record, part, stats)
            else:
                self._remove_part(shard_id, part)

    def _stats_of(self, name: str) -> Stats:
        return stats_in(read_metadata(self.store, name), self.store.uri(name))

    def _erase_part(self, record: ShardRecord, part: int, stats: list[Stats]) -> ShardRecord:
        """Rewrite a part of a committed shard; return the shard's new record.

        `stats` has the sums of each part, of which that of this part is replaced.
        """
        erased, files = self._read_part(record.shard, part)
        stats[part] = erased.stats
        parts = list(record.parts)
        parts[part] = replace(
            parts[part],
            faces=erased.stats.counts.faces,
            rejects=erased.stats.counts.rejects,
            latents_sha256=hashlib.sha256(erased.latents).hexdigest(),
            rejects_sha256=hashlib.sha256(erased.rejects).hexdigest(),
        )
        new = replace(
            record,
            faces=sum(each.faces for each in parts),
            rejects=sum(each.rejects for each in parts),
            figures=sum(stats, Stats()).figures_text(),
            parts=tuple(parts),
        )
        new.write(self.store, replace=True)
        self._put(files)
        return new

    def _erase_open_part(self, shard_id: str, part: int) -> None:
        """Rewrite a part of an open shard; remove one that lacks a file, to be done again."""
        if all(map(self.store.exists, part_names(shard_id, part))):
            self._put(self._read_part(shard_id, part)[1])
        else:
            self._remove_part(shard_id, part)

    def _remove_part(self, shard_id: str, part: int) -> None:
        """Remove a part that no commit owns, rejects last, as all removals do."""
        for name in part_names(shard_id, part):
            self.store.remove(name)

    def _put(self, files: _Files) -> None:
        for name, content in files:
            self.store.put(name, content)

    def _read_part(self, shard_id: str, part: int) -> tuple[EncodedPart, _Files]:
        """Return the new content of a part; `TableError` if it is damaged.

        Last of the files is the one by whose rows the part is found again after a stop. If that are
        the latents, an image is a reject before its face is gone, as readers expect.
        """
        names = part_names(shard_id, part)
        latents, rejects = map(self._read, names)
        metadata = decode_metadata(latents.schema.metadata)
        samples = metadata.get("samples")
        if type(samples) is not int:
            raise TableError(f"'{self.store.uri(names[0])}' does not say how many samples it has")
        kept, rejects = self.forgotten.erase(latents, rejects, part=part, samples=samples)
        encoded = encode_part(kept, rejects, metadata)
        files = list(zip(names, (encoded.latents, encoded.rejects), strict=True))
        has_faces = kept.num_rows < latents.num_rows
        return encoded, files[::-1] if has_faces else files

    def _read(self, name: str) -> pa.Table:
        """Read a file with the types of the table; Parquet gives items of lists another name."""
        content, kind = self.store.get(name), name.split("/", 1)[0]
        with damage_reported(self.store.uri(name)):
            table = pq.ParquetFile(pa.BufferReader(content)).read()
            return table.cast(self._schemas[kind].with_metadata(table.schema.metadata))


def _clean_up(store: Store) -> str:
    """Replace all that was derived from the rows; return a note about a card that stays."""
    refresh_index(store)
    forget_part_index(store)
    _remove_temporaries(store)
    return write_card(open_table(store.root))


def _remove_temporaries(store: Store) -> None:
    """Remove files of a table on a disk that writers left when they were killed."""
    if is_local(store.root):
        for path in Path(store.path()).rglob(".*.tmp"):
            if _TEMPORARY.fullmatch(path.name):
                path.unlink(missing_ok=True)
