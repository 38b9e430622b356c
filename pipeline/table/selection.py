"""Select rows of a table by SQL, in an order and up to a number, and stream them.

`Selection` is what the flags `--table --where --order --limit` of a job mean.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.errors import RequestError
from pipeline.table.reader import Table
from pipeline.table.schema import STYLE_DIM
from pipeline.table.statements import condition, ordering

_BATCH_ROWS = 32


@dataclass(frozen=True)
class Selection:
    """Faces of a table: those that fulfil `where`, sorted by `order`, at most `limit`.

    `where` is an SQL condition on rows of `latents`, `order` an SQL list such as `lpips DESC`.
    Without `order` the rows come as the files hold them: by shard, part and image id. Equal values
    of `order` come by image id, so that the same selection of the same table is always the same.
    Rows stream without `order`, or with `limit`; an order of all rows is sorted in memory with the
    columns that are read: 27 kB per code of 18 rows.
    """

    table: Table
    where: str = ""
    order: str = ""
    limit: int | None = None

    def query(self, columns: str) -> str:
        """Return the SQL query of `columns`, an SQL list; `RequestError` for wrong SQL."""
        return f"SELECT {columns} FROM {self.source}{self._sorted}"

    @property
    def source(self) -> str:
        """SQL of the selected rows as a table, in parentheses, unsorted unless limited."""
        where = f" WHERE {condition(self.where)}" if self.where else ""
        limit = f"{self._sorted} LIMIT {int(self.limit)}" if self.limit is not None else ""
        return f"(SELECT * FROM latents{where}{limit})"

    def batches(self, columns: str, rows: int) -> Iterator[pa.RecordBatch]:
        """Yield `columns` of the selected rows in Arrow batches of at most `rows` rows."""
        return self.table.batches(self.query(columns), rows)

    def rows(self, columns: str) -> Iterator[dict[str, Any]]:
        """Yield `columns` of each selected row; only one batch is in memory.

        Codes become float32 arrays [..., n_styles, 512], everything else Python values.
        """
        for batch in self.batches(columns, _BATCH_ROWS):
            yield from rows_of(batch)

    def code_batches(
        self, rows: int, columns: str = "image_id"
    ) -> Iterator[tuple[pa.RecordBatch, np.ndarray]]:
        """Yield batches of `columns` with the rows' `w_plus`, float32 [n, n_styles, 512]."""
        for batch in self.batches(f"{columns}, w_plus AS __codes", rows):
            (*names, _) = batch.schema.names
            yield batch.select(names), codes_of(batch.column(len(names)))

    def count(self) -> int:
        """Return the number of selected rows."""
        counted = self.table.arrow(f"SELECT count(*) AS n FROM {self.source}")
        return int(counted.column("n")[0].as_py())

    def require_rows(self) -> int:
        """Return the number of selected rows; `RequestError` if there are none."""
        if count := self.count():
            return count
        root = self.table.store.root
        if self.where:
            raise RequestError(f"--where \"{self.where}\" selects no face of the table '{root}'")
        raise RequestError(f"the table '{root}' has no faces")

    @property
    def _sorted(self) -> str:
        return f" ORDER BY {ordering(self.order)}, image_id" if self.order else ""


def codes_of(column: pa.Array) -> np.ndarray:
    """Return a column of codes as float32 [n, n_styles, 512]; `RequestError` for a null."""
    if column.null_count:
        raise RequestError("a selected row has no w_plus")
    flat = column.flatten().flatten().to_numpy(zero_copy_only=False)
    n_styles = len(flat) // (STYLE_DIM * max(1, len(column)))
    return np.asarray(flat, np.float32).reshape(len(column), n_styles, STYLE_DIM)


def rows_of(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """Yield the rows of a batch; codes become float32 arrays [..., n_styles, 512].

    A column with a null becomes Python lists as a whole.
    """
    columns = {name: _values(batch.column(name)) for name in batch.schema.names}
    for index in range(batch.num_rows):
        yield {name: values[index] for name, values in columns.items()}


def _values(column: pa.Array) -> list[Any]:
    kind, depth = column.type, 0
    while pa.types.is_list(kind):
        kind, depth = kind.value_type, depth + 1
    if depth < 2 or not _holds_codes(column, depth):
        values: list[Any] = column.to_pylist()
        return values
    lengths = np.diff(column.offsets.to_numpy(), axis=0) if depth > 2 else None
    rows = column.flatten() if depth > 2 else column
    n_styles = len(rows[0]) if len(rows) else 0
    flat = rows.flatten().flatten().to_numpy(zero_copy_only=False)
    codes = np.asarray(flat, np.float32).reshape(-1, n_styles, STYLE_DIM)
    return list(codes) if lengths is None else np.split(codes, np.cumsum(lengths)[:-1])


def _holds_codes(column: pa.Array, depth: int) -> bool:
    """Return whether the innermost lists have 512 numbers; those of landmarks have two."""
    rows = column
    for _ in range(depth - 1):
        rows = rows.flatten()
    return (
        bool(len(rows)) and not column.null_count and len(rows.flatten()) == STYLE_DIM * len(rows)
    )
