"""Read rows of part files in another order: each file once, its rows moved by `reorder`."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import TableError
from pipeline.interop.row_order import StoredRows
from pipeline.storage import is_local
from pipeline.table.parts import damage_reported
from pipeline.table.reordering import Positions, reorder

_AHEAD = 4  # files


def gather(
    rows: StoredRows, positions: Positions, bounds: Sequence[int], wanted: Sequence[bool]
) -> Generator[pa.Table]:
    """Return the stored rows at `positions` in their order, as tables between the `bounds`.

    Window i has the rows from bounds[i] up to bounds[i + 1]. Windows that are not `wanted` are left
    out, and their rows not read. Raises `TableError` for a damaged file.
    """
    target = np.full(len(rows.ids), -1, np.int64)
    target[positions] = np.arange(len(positions))
    edges = np.asarray(bounds, np.int64)
    keep = np.asarray(wanted, bool)
    return reorder(_wanted_rows(rows, target, edges, keep), edges, np.flatnonzero(keep).tolist())


def _wanted_rows(
    rows: StoredRows, target: Positions, edges: Positions, keep: NDArray[np.bool_]
) -> Iterator[tuple[pa.Table, Positions]]:
    """Yield rows of the part files with their places, sorted by place."""
    windows = np.clip(np.searchsorted(edges, target, side="right") - 1, 0, len(keep) - 1)
    is_wanted = (target >= 0) & keep[windows]
    bounds = list(itertools.pairwise(rows.offsets.tolist()))
    chosen = [index for index, (start, end) in enumerate(bounds) if is_wanted[start:end].any()]
    contents = _read_ahead(rows, [rows.files[index] for index in chosen])
    for index, content in zip(chosen, contents, strict=True):
        first, end = bounds[index]
        for table in _row_groups(rows, rows.files[index], end - first, content):
            stored = first + np.flatnonzero(is_wanted[first : first + table.num_rows])
            stored = stored[np.argsort(target[stored])]
            if len(stored):
                yield table.take(pa.array(stored - first)), target[stored]
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
