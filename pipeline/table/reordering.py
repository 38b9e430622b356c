"""Bring rows into another order, in bounded memory.

The output is cut into windows of consecutive rows. Rows come as they are stored; each goes to the
buffer of its window, and a window leaves when it is complete and next. Orders that follow the files
(by shard, by image id) need few buffers. Where buffers exceed `BUFFER_BYTES`, as with an order that
mixes all files, they go to a temporary folder of the local disk, one run of batches at a time, and
come back window by window. DuckDB's own sort ends with an error where wide rows exceed its memory.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.storage.uris import storage_errors

Positions = NDArray[np.int64]

BUFFER_BYTES = 256 << 20
WINDOW_BYTES = 48 << 20
_TARGET = "__target"  # column with a row's place in the output


def window_rows(row_bytes: int, group: int) -> int:
    """Return the number of rows of a window: a multiple of `group`, near `WINDOW_BYTES`."""
    return max(1, WINDOW_BYTES // (row_bytes * group)) * group


def reorder(
    rows: Iterable[tuple[pa.Table, Positions]], edges: Positions, windows: Sequence[int]
) -> Generator[pa.Table]:
    """Yield `windows` of the rows, in their order.

    `rows` are tables with the places of their rows in the output, sorted by place. Window i has the
    places from edges[i] up to edges[i + 1]; all of its rows must come.
    """
    waiting = list(windows)
    with tempfile.TemporaryDirectory(prefix="restyle-order-") as folder:
        buffers = _Buffers(edges, Path(folder))
        for table, targets in rows:
            buffers.add(table, targets)
            while waiting and buffers.is_complete(waiting[0]):
                yield buffers.take(waiting.pop(0))
            buffers.spill_beyond(BUFFER_BYTES)
        for window in waiting:
            yield buffers.take(window)


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
