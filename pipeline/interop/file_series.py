"""Exports of many rows in a series of numbered files, written once each and continued.

A file has `rows_per_file` rows of the export's order, the last one the rest. It is written to the
local disk and stored under its name when it is complete; a file that exists is never replaced. The
plan says what all files of a series come from. Each layout keeps it with its files, so that the
same command writes only what is missing, and files of another table, another state of the table,
another selection or other settings are refused.
"""

from __future__ import annotations

import hashlib
import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.errors import ConfigError
from pipeline.interop.row_order import SortBy, StoredRows, gather, positions_of, stored_rows
from pipeline.storage import Store
from pipeline.table.reordering import Positions, window_rows
from pipeline.table.selection import Selection

VERSION = 1
ROW_GROUP = 128  # rows, as in the table: what reading one code with its neighbours costs
_MOST_FILES = 99_999
# Codes, float32 [n, n_styles, 512] -> one encoded PNG each.
Render = Callable[[NDArray[np.float32]], Sequence[bytes]]

# What differs between two plans, the cause first.
_DIFFERENCES = {
    "version": "another version of this library wrote it",
    "layout": "it has another layout",
    "fingerprint": "it is of another table",
    "state": "the table has changed since, or it is of another table",
    "order": "it has other faces or another order",
    "rows_per_file": "it has another --rows-per-file",
    "pictures": "it has other pictures or names",
}


@dataclass(frozen=True)
class Series:
    """Rows of an export, cut into files.

    `plan` is kept with the files: facts that those of one series share, and the URI of the table.
    """

    rows: StoredRows
    positions: Positions
    rows_per_file: int
    window: int  # rows that are in memory together
    plan: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        selection: Selection,
        layout: str,
        rows_per_file: int,
        *,
        sort_by: SortBy | None = None,
        pictures: object = None,
        added_bytes: int = 0,
    ) -> Self:
        """Read the ids of the table and decide the order of the rows: as selected, or sorted.

        `pictures` are further settings that change the files, and `added_bytes` is about what a row
        gains in memory by pictures that are rendered for it. Raises `ConfigError` if no face is
        selected.
        """
        table = selection.table
        rows = stored_rows(table)
        positions = positions_of(selection, rows, sort_by)
        if -(-len(positions) // rows_per_file) > _MOST_FILES:
            raise ConfigError(
                f"--rows-per-file {rows_per_file}: {len(positions):,} faces would take more than "
                f"{_MOST_FILES:,} files; choose more rows"
            )
        plan = {
            "table": table.store.root,
            "version": VERSION,
            "layout": layout,
            "fingerprint": table.spec.fingerprint,
            "state": rows.digest,
            "order": hashlib.sha256(positions.tobytes()).hexdigest(),
            "rows_per_file": rows_per_file,
            "sort_by": sort_by,
            "pictures": pictures,
        }
        window = window_rows(rows.row_bytes + added_bytes, ROW_GROUP)
        return cls(rows, positions, rows_per_file, window, plan)

    def check_plan(self, stored: object, where: str) -> None:
        """Raise `ConfigError` unless `stored`, the plan of the file `where`, is the plan."""
        given = stored if isinstance(stored, dict) else {}
        for name, why in _DIFFERENCES.items():
            if given.get(name) != self.plan[name]:
                raise ConfigError(
                    f"'{where}' is not a file of this export ({why}) and is not replaced: choose "
                    "another folder, or delete the earlier export in this one"
                )

    def names(self, start: str, suffix: str) -> list[str]:
        """Return the names of all files: `<start>-<number>-of-<count><suffix>`."""
        count = -(-len(self.positions) // self.rows_per_file)
        return [f"{start}-{number:05d}-of-{count:05d}{suffix}" for number in range(count)]

    def write(
        self,
        store: Store,
        names: Sequence[str],
        existing: set[str],
        encode: Callable[[Path, Iterator[pa.Table]], None],
    ) -> dict[str, int]:
        """Write the files that do not exist; return counts for the JSON line.

        `encode` writes the rows of one file to a local path. Memory does not grow with the number
        of rows; the local disk holds one file, and in an order that mixes the table's files one
        copy of the missing rows.
        """
        step = self.rows_per_file
        missing = {
            name: self.positions[number * step : (number + 1) * step]
            for number, name in enumerate(names)
            if name not in existing
        }
        counts = {"written": len(self.positions), "files": len(names), "new_files": len(missing)}
        if not missing:
            return counts
        edges: list[int] = []
        end = 0
        for positions in missing.values():
            start, end = end, end + len(positions)
            edges += range(start, end, self.window)
        wanted = np.concatenate(list(missing.values()))
        with (
            closing(gather(self.rows, wanted, np.array([*edges, end]))) as tables,
            tempfile.TemporaryDirectory(prefix="restyle-export-") as folder,
        ):
            for name, positions in missing.items():
                path = Path(folder) / "file"
                encode(path, itertools.islice(tables, -(-len(positions) // self.window)))
                store.put_if_absent(name, path)
                path.unlink()
        return counts
