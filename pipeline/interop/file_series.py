"""Exports of many rows in a series of numbered files, written once each and continued.

A file has `rows_per_file` rows of the export's order, the last one the rest. It is written to the
local disk and stored under its name when it is complete; a file that exists is never replaced. The
`Plan` says what all files of a series come from. Each layout keeps it with its files, so that the
same command writes only what is missing, and files of another table, another state of the table,
another selection or other settings are refused.
"""

from __future__ import annotations

import hashlib
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
from pipeline.interop.gathering import gather
from pipeline.interop.row_order import SortBy, StoredRows, positions_of, stored_rows
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
class SeriesOptions:
    """Rows of a file, and the order of the rows: as selected, or sorted.

    `added_bytes` is about what a row gains in memory by pictures that are rendered for it.
    """

    rows_per_file: int
    sort_by: SortBy | None = None
    added_bytes: int = 0


@dataclass(frozen=True)
class Plan:
    """Origin of the files of a series; `facts` are compared, `table` is for lineage."""

    table: str  # URI of the table
    facts: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return the form that is stored with the files."""
        return {"table": self.table, **self.facts}

    def check(self, stored: object, where: str) -> None:
        """Raise `ConfigError` unless `stored`, the plan of the file `where`, is this one."""
        given = stored if isinstance(stored, dict) else {}
        for name, why in _DIFFERENCES.items():
            if given.get(name) != self.facts[name]:
                raise ConfigError(
                    f"'{where}' is not a file of this export ({why}) and is not replaced: choose "
                    "another folder, or delete the earlier export in this one"
                )


@dataclass(frozen=True)
class Series:
    """Rows of an export, cut into files."""

    rows: StoredRows
    positions: Positions
    options: SeriesOptions
    plan: Plan

    @classmethod
    def of(
        cls, selection: Selection, options: SeriesOptions, layout: str, pictures: object = None
    ) -> Self:
        """Read the ids of the table and decide the order of the rows.

        `pictures` are further settings that change the files. Raises `ConfigError` if no face is
        selected.
        """
        table = selection.table
        rows = stored_rows(table)
        positions = positions_of(selection, rows, options.sort_by)
        if -(-len(positions) // options.rows_per_file) > _MOST_FILES:
            raise ConfigError(
                f"--rows-per-file {options.rows_per_file}: {len(positions):,} faces would take "
                f"more than {_MOST_FILES:,} files; choose more rows"
            )
        facts = {
            "version": VERSION,
            "layout": layout,
            "fingerprint": table.spec.fingerprint,
            "state": rows.digest,
            "order": hashlib.sha256(positions.tobytes()).hexdigest(),
            "rows_per_file": options.rows_per_file,
            "sort_by": options.sort_by,
            "pictures": pictures,
        }
        return cls(rows, positions, options, Plan(table.store.root, facts))

    @property
    def count(self) -> int:
        """Number of files."""
        return -(-len(self.positions) // self.options.rows_per_file)

    def names(self, start: str, suffix: str) -> list[str]:
        """Return the names of all files: `<start>-<number>-of-<count><suffix>`."""
        return [f"{start}-{number:05d}-of-{self.count:05d}{suffix}" for number in range(self.count)]

    def write(
        self,
        store: Store,
        names: Sequence[str],
        existing: set[str],
        encode: Callable[[Path, Iterator[pa.Table]], None],
    ) -> int:
        """Write the files that do not exist; return their number.

        `encode` writes the rows of one file to a local path. Memory does not grow with the number
        of rows; the local disk holds one file, and in an order that mixes the table's files one
        copy of the missing rows.
        """
        per_file = self._windows()
        is_missing = [name not in existing for name in names]
        bounds = [bound for windows in per_file for bound in windows[:-1]] + [len(self.positions)]
        wanted = [
            missing
            for windows, missing in zip(per_file, is_missing, strict=True)
            for _ in windows[:-1]
        ]
        if not any(wanted):
            return 0
        with (
            closing(gather(self.rows, self.positions, bounds, wanted)) as tables,
            tempfile.TemporaryDirectory(prefix="restyle-export-") as folder,
        ):
            for name, windows, missing in zip(names, per_file, is_missing, strict=True):
                if missing:
                    path = Path(folder) / "file"
                    encode(path, (next(tables) for _ in windows[:-1]))
                    store.put_if_absent(name, path)
                    path.unlink()
        return sum(is_missing)

    def _windows(self) -> list[list[int]]:
        """Return the bounds of the windows of each file."""
        total, step = len(self.positions), self.options.rows_per_file
        rows = window_rows(self.rows.row_bytes + self.options.added_bytes, ROW_GROUP)
        starts = range(0, total, step)
        return [
            [*np.arange(start, min(start + step, total), rows).tolist(), min(start + step, total)]
            for start in starts
        ]
