"""Rows of a table in the order of an export: which stored row stands where, and reading them so.

Positions refer to the stored rows: the part files in the order of their names, row after row. Only
the image ids are in memory, about 0.2 kB per face. Each file is read once, and its rows are moved
by `reorder`.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import TableError
from pipeline.storage import is_local
from pipeline.table.parts import LATENTS, damage_reported, parse_part_name
from pipeline.table.reader import Table
from pipeline.table.reordering import Positions, reorder
from pipeline.table.selection import Selection, require_unique

SortBy = Literal["image_id", "cluster"]

_THREADS = 8
_ID_ROWS = 65536
_AHEAD = 4  # files
# Clusters of an export: about so many faces in each, and passes over the vectors to find them.
_CLUSTER_FACES, _MOST_CLUSTERS, _ITERATIONS = 500, 1000, 10


@dataclass(frozen=True)
class StoredRows:
    """Part files of a table with their rows, at one moment."""

    table: Table
    files: Sequence[str]
    offsets: NDArray[np.int64]  # [files + 1]; file i has the stored rows from offsets[i] on
    ids: pa.Array  # image id of each stored row
    row_bytes: int  # mean size of a row in memory
    digest: str  # SHA-256 of what the files state about themselves, and of the ids


def stored_rows(table: Table) -> StoredRows:
    """Read the image ids of a table. Raises `TableError` for a damaged file and for twin ids."""
    files = [name for name in table.store.names(f"{LATENTS}/") if parse_part_name(name)]
    with ThreadPoolExecutor(_THREADS) as pool:
        parts = list(pool.map(lambda name: _ids_and_facts(table, name), files))
    ids = pa.chunked_array([ids for ids, _, _ in parts], pa.string()).combine_chunks()
    require_unique(ids, table)
    digest = hashlib.sha256()
    for name, (part, _, facts) in zip(files, parts, strict=True):
        digest.update(f"{name}\0{len(part)}\0{facts}\n".encode())
    counts = np.array([len(part) for part, _, _ in parts], np.int64)
    total_bytes = sum(size for _, size, _ in parts)
    return StoredRows(
        table,
        files,
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        ids,
        max(1, total_bytes // max(1, len(ids))),
        digest.hexdigest(),
    )


def _ids_and_facts(table: Table, name: str) -> tuple[pa.Array, int, str]:
    """Return ids, bytes in memory, and a digest of the key, sums and ids of a part file."""
    with table.store.open(name) as file, damage_reported(table.store.uri(name)):
        parquet = pq.ParquetFile(file)
        metadata = parquet.metadata
        ids = parquet.read(["image_id"])["image_id"].combine_chunks()
    digest = hashlib.sha256()
    for key, value in sorted((metadata.metadata or {}).items()):
        digest.update(key + b"\0" + value + b"\n")
    digest.update("\n".join(ids.to_pylist()).encode())
    return ids, page_bytes(metadata), digest.hexdigest()


def page_bytes(footer: pq.FileMetaData) -> int:
    """Return the bytes of a file's uncompressed pages."""
    groups = range(footer.num_row_groups)
    return sum(footer.row_group(group).total_byte_size for group in groups)


def positions_of(selection: Selection, rows: StoredRows, sort_by: SortBy | None) -> Positions:
    """Return the stored rows that `selection` chooses, int64 [n], in the order of the export.

    `sort_by` sorts them by image id, or by cluster of their codes and then by image id; without it
    they keep the order of the selection. Raises `ConfigError` if there are none, and `TableError`
    if the table has changed since its ids were read.
    """
    positions = np.arange(len(rows.ids), dtype=np.int64)
    if selection.where or selection.order or selection.limit is not None:
        positions = _chosen(selection, rows)
    selection.refuse_none(len(positions))
    if sort_by is None:
        return positions
    by_id = np.asarray(pc.sort_indices(rows.ids.take(pa.array(positions))), np.int64)
    positions = positions[by_id]
    if sort_by == "cluster":
        positions = positions[np.argsort(_clusters(selection, rows, positions), kind="stable")]
    return positions


def _chosen(selection: Selection, rows: StoredRows) -> Positions:
    batches = [batch.column(0) for batch in selection.batches("image_id", _ID_ROWS)]
    chosen = pa.chunked_array(batches, pa.string())
    positions = pc.index_in(chosen, value_set=rows.ids)
    if positions.null_count:
        raise TableError(
            f"the table '{rows.table.store.root}' changed during the export: run again when no "
            "job writes to it"
        )
    return np.asarray(positions, np.int64)


def _clusters(selection: Selection, rows: StoredRows, positions: Positions) -> NDArray[np.int64]:
    """Return the cluster of each row at `positions`, int64 [n]; the last one has no vector."""
    # PyTorch is slow to import, and no other order needs it.
    from pipeline.search.clusters import find_clusters
    from pipeline.search.requests import default_by
    from pipeline.search.vectors import Vectors

    vectors = Vectors(selection, default_by(rows.table))
    with_vector = sum(len(block.ids) for block in vectors.blocks())
    labels = np.zeros(len(rows.ids), np.int64)
    if with_vector:
        count = max(1, min(_MOST_CLUSTERS, with_vector // _CLUSTER_FACES))
        labels[:] = count
        found = find_clusters(vectors, count, most_iterations=_ITERATIONS)
        for assigned in found.assign(vectors):
            places = pc.index_in(assigned.ids, value_set=rows.ids)
            labels[np.asarray(places, np.int64)] = assigned.clusters
    return labels[positions]


def gather(rows: StoredRows, positions: Positions, edges: Positions) -> Generator[pa.Table]:
    """Return the stored rows at `positions` in their order, as tables between the `edges`.

    Table i has the rows from edges[i] up to edges[i + 1]. Raises `TableError` for a damaged file.
    """
    target = np.full(len(rows.ids), -1, np.int64)
    target[positions] = np.arange(len(positions))
    return reorder(_placed_rows(rows, target), edges, range(len(edges) - 1))


def _placed_rows(rows: StoredRows, target: Positions) -> Iterator[tuple[pa.Table, Positions]]:
    """Yield the rows of the part files that have a place in `target`, sorted by place."""
    bounds = list(itertools.pairwise(rows.offsets.tolist()))
    chosen = [index for index, (start, end) in enumerate(bounds) if (target[start:end] >= 0).any()]
    contents = _read_ahead(rows, [rows.files[index] for index in chosen])
    for index, content in zip(chosen, contents, strict=True):
        first, end = bounds[index]
        for table in _row_groups(rows, rows.files[index], end - first, content):
            places = target[first : first + table.num_rows]
            stored = np.argsort(places)[np.count_nonzero(places < 0) :]
            if len(stored):
                yield table.take(pa.array(stored)), places[stored]
            first += table.num_rows


def _read_ahead(rows: StoredRows, names: Sequence[str]) -> Iterator[bytes | None]:
    """Yield the content of each file, a few read ahead; None on a local disk.

    Whole, because the columns of a row group would take one request each.
    """
    store = rows.table.store
    if is_local(store.root):
        yield from itertools.repeat(None, len(names))
        return
    with ThreadPoolExecutor(_AHEAD) as pool:
        waiting: deque[Future[bytes]] = deque()
        for name in names:
            waiting.append(pool.submit(store.get, name))
            if len(waiting) == _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _row_groups(
    rows: StoredRows, name: str, count: int, content: bytes | None
) -> Iterator[pa.Table]:
    store, schema = rows.table.store, rows.table.spec.columns.latents_schema()
    opened = store.open(name) if content is None else nullcontext(pa.BufferReader(content))
    with opened as file, damage_reported(store.uri(name)):
        parquet = pq.ParquetFile(file)
        if parquet.metadata.num_rows != count:
            raise TableError(f"'{store.uri(name)}' changed during the export: run again")
        for group in range(parquet.num_row_groups):
            yield parquet.read_row_group(group).select(schema.names).cast(schema)
