"""Bring the rows of part files into another order, in bounded memory.

The output is cut into windows of consecutive rows. Part files are read once, in their order; each
row goes to the buffer of its window, and a window leaves when it is complete and next. Orders that
follow the files (by shard, by image id) need few buffers. Where buffers exceed `BUFFER_BYTES`, as
with an order that mixes all files, they go to a temporary folder of the local disk, one run of
batches at a time, and come back window by window.
"""

from __future__ import annotations

import itertools
import tempfile
from collections import defaultdict, deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import TableError
from pipeline.interop.row_order import Positions, StoredRows
from pipeline.storage import is_local
from pipeline.storage.uris import storage_errors
from pipeline.table.parts import damage_reported

BUFFER_BYTES = 256 << 20
WINDOW_BYTES = 48 << 20
_AHEAD = 4  # files
_TARGET = "__target"  # column with a row's place in the output


def window_rows(row_bytes: int, group: int) -> int:
    """Return the number of rows of a window: a multiple of `group`, near `WINDOW_BYTES`."""
    return max(1, WINDOW_BYTES // (row_bytes * group)) * group


def gather(
    rows: StoredRows, positions: Positions, bounds: Sequence[int], wanted: Sequence[bool]
) -> Generator[pa.Table]:
    """Yield the stored rows at `positions` in their order, as tables between the `bounds`.

    Window i has the rows from bounds[i] up to bounds[i + 1]. Windows that are not `wanted` are left
    out, and their rows not read. Raises `TableError` for a damaged file.
    """
    target = np.full(len(rows.ids), -1, np.int64)
    target[positions] = np.arange(len(positions))
    edges = np.asarray(bounds, np.int64)
    keep = np.asarray(wanted, bool)
    with tempfile.TemporaryDirectory(prefix="restyle-export-") as folder:
        buffers = _Buffers(edges, Path(folder))
        waiting = [int(window) for window in np.flatnonzero(keep)]
        for table, targets in _wanted_rows(rows, target, edges, keep):
            buffers.add(table, targets)
            while waiting and buffers.is_complete(waiting[0]):
                yield buffers.take(waiting.pop(0))
            buffers.spill_beyond(BUFFER_BYTES)
        for window in waiting:
            yield buffers.take(window)


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


@dataclass
class _Buffers:
    """Rows of windows that are not complete yet, in memory or in runs on the disk."""

    edges: Positions
    folder: Path
    _tables: dict[int, list[pa.Table]] = field(default_factory=lambda: defaultdict(list))
    _counts: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    _runs: list[dict[int, int]] = field(default_factory=list)  # window -> batch, of each run
    _bytes: int = 0

    def add(self, table: pa.Table, targets: Positions) -> None:
        """Add rows with their places in the output, sorted by place."""
        table = table.append_column(_TARGET, pa.array(targets))
        windows = np.searchsorted(self.edges, targets, side="right") - 1
        starts = np.flatnonzero(np.diff(windows, prepend=-1))
        for start, end in zip(starts, [*starts[1:], len(windows)], strict=True):
            window = int(windows[start])
            self._tables[window].append(table.slice(int(start), int(end - start)))
            self._counts[window] += int(end - start)
        self._bytes += table.nbytes

    def is_complete(self, window: int) -> bool:
        """Return whether all rows of a window are here."""
        return self._counts[window] == int(self.edges[window + 1] - self.edges[window])

    def take(self, window: int) -> pa.Table:
        """Return the rows of a window in their order, and forget them."""
        tables = self._tables.pop(window, [])
        self._bytes -= sum(table.nbytes for table in tables)
        for number, run in enumerate(self._runs):
            if window in run:
                tables.append(self._read(number, run[window]))
        table = pa.concat_tables(tables).combine_chunks()
        order = np.argsort(table[_TARGET].to_numpy())
        table = table.drop_columns([_TARGET])
        if (order == np.arange(len(order))).all():
            return table
        return table.take(pa.array(order))

    def spill_beyond(self, limit: int) -> None:
        """Write all buffers to the disk if they take more than `limit` bytes."""
        if self._bytes <= limit:
            return
        run: dict[int, int] = {}
        path = self.folder / f"{len(self._runs)}.arrow"
        schema = next(iter(self._tables.values()))[0].schema
        with (
            storage_errors(f"write '{path}'"),
            pa.OSFile(str(path), "wb") as sink,
            pa.ipc.new_file(sink, schema) as writer,
        ):
            for window, tables in self._tables.items():
                run[window] = len(run)
                writer.write_table(pa.concat_tables(tables).combine_chunks())
        self._runs.append(run)
        self._tables.clear()
        self._bytes = 0

    def _read(self, run: int, batch: int) -> pa.Table:
        path = self.folder / f"{run}.arrow"
        with storage_errors(f"read '{path}'"), pa.OSFile(str(path)) as source:
            return pa.Table.from_batches([pa.ipc.open_file(source).get_batch(batch)])
