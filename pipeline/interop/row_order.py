"""Rows of a table in the order of an export: which stored row stands where, and what they are.

Positions refer to the stored rows: the part files in the order of their names, row after row. Only
the image ids are in memory, about 0.2 kB per face.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import TableError
from pipeline.table.parts import LATENTS, damage_reported, parse_part_name
from pipeline.table.reader import Table
from pipeline.table.reordering import Positions
from pipeline.table.selection import Selection, require_unique

SortBy = Literal["image_id", "cluster"]

_THREADS = 8
_ID_ROWS = 65536
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
    ids = ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids
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
    ids = pa.concat_arrays(ids.chunks) if isinstance(ids, pa.ChunkedArray) else ids
    groups = range(metadata.num_row_groups)
    size = sum(metadata.row_group(group).total_byte_size for group in groups)
    digest = hashlib.sha256()
    for key, value in sorted((metadata.metadata or {}).items()):
        digest.update(key + b"\0" + value + b"\n")
    digest.update("\n".join(ids.to_pylist()).encode())
    return ids, size, digest.hexdigest()


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
