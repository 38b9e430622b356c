"""Select rows of a table by SQL, in an order and up to a number, and stream them.

`Selection` is what the flags `--table --where --order --limit` of a job mean.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import ConfigError, RequestError, TableError
from pipeline.table.reader import Table
from pipeline.table.reordering import Positions, reorder, window_rows
from pipeline.table.schema import STYLE_DIM, codes_of, step_codes_of
from pipeline.table.statements import condition, ordering

_BATCH_ROWS = 32
_SORTED_ROWS = 4096  # up to so many DuckDB sorts with their codes, in 56 kB per code of 18 rows
_ID_ROWS = 65536
_READ_ROWS = 2048


@dataclass(frozen=True)
class Selection:
    """Faces of a table: those that fulfil `where`, sorted by `order`, at most `limit`.

    `where` is an SQL condition on rows of `latents`, `order` an SQL list such as `lpips DESC`.
    Without `order` the rows come as the files hold them: by shard, part and image id. Equal values
    of `order` come by image id, so that the same selection of the same table is always the same.
    Memory holds a batch, and with an `order` 0.2 kB per row; codes of more than 4,096 rows in an
    order go through `reorder`, which may copy them to the local disk as float32.
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
        """Yield `columns` of the selected rows in Arrow batches of at most `rows` rows.

        Raises `TableError` for lists or bytes of many rows in an order if an image id is there
        twice.
        """
        if not self.order or (self.limit or 1 + _SORTED_ROWS) <= _SORTED_ROWS:
            return self.table.batches(self.query(columns), rows)
        schema = self.table.arrow(f"SELECT {columns} FROM latents LIMIT 0").schema
        is_wide = any(pa.types.is_nested(kind) or pa.types.is_binary(kind) for kind in schema.types)
        if not is_wide or self.count() <= _SORTED_ROWS:
            return self.table.batches(self.query(columns), rows)
        return self._reordered(columns, rows)

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
        """Return the number of selected rows; `ConfigError` if there are none."""
        count = self.count()
        self.refuse_none(count)
        return count

    def refuse_none(self, count: int) -> None:
        """Raise `ConfigError` if `count`, the number of selected rows, is 0."""
        if count:
            return
        root = self.table.store.root
        if self.where:
            raise ConfigError(f"--where \"{self.where}\" selects no face of the table '{root}'")
        raise ConfigError(f"the table '{root}' has no faces")

    def unordered(self) -> Self:
        """Return a selection of the same rows for work on which their order has no influence."""
        return self if self.limit is not None else replace(self, order="")

    def _reordered(self, columns: str, rows: int) -> Iterator[pa.RecordBatch]:
        """Yield what `batches` yields; sort the ids alone, then move the rows as they are read."""
        batches = self.table.batches(self.query("image_id"), _ID_ROWS)
        ids = pa.chunked_array([batch.column(0) for batch in batches], pa.string())
        require_unique(ids, self.table)
        stream = self._placed(columns, ids)
        first = next(stream)
        window = window_rows(max(1, first[0].nbytes // len(first[1])), rows)
        edges = np.append(np.arange(0, len(ids), window), len(ids))
        for table in reorder(itertools.chain([first], stream), edges, range(len(edges) - 1)):
            yield from table.to_batches(max_chunksize=rows)

    def _placed(self, columns: str, ids: pa.ChunkedArray) -> Iterator[tuple[pa.Table, Positions]]:
        """Yield `columns` of the rows with these ids as they are stored, and their places in `ids`.

        Raises `RequestError` if a row does not come again.
        """
        where = f" WHERE {condition(self.where)}" if self.where else ""
        query = f"SELECT {columns}, image_id AS __id FROM latents{where}"
        left = len(ids)
        for batch in self.table.batches(query, _READ_ROWS):
            places = pc.index_in(batch.column(-1), value_set=ids)
            order = pc.sort_indices(places).slice(0, len(places) - places.null_count)
            left -= len(order)
            table = pa.Table.from_batches([batch]).take(order).drop_columns(["__id"])
            if len(order):
                yield table, places.take(order).to_numpy().astype(np.int64)
        if left:
            raise RequestError(
                f'--where "{self.where}" selects other rows each time: it cannot be ordered'
            )

    @property
    def _sorted(self) -> str:
        return f" ORDER BY {ordering(self.order)}, image_id" if self.order else ""


def require_unique(ids: pa.Array | pa.ChunkedArray, table: Table) -> None:
    """Raise `TableError` if an id of a table is there twice."""
    if len(ids) != pc.count_distinct(ids).as_py():
        raise TableError(
            f"the table '{table.store.root}' has an image id twice: run its job again, which "
            "removes files that no commit owns"
        )


def rows_of(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """Yield the rows of a batch, as `Selection.rows` does."""
    columns = {name: _values(batch.column(name)) for name in batch.schema.names}
    for index in range(batch.num_rows):
        yield {name: values[index] for name, values in columns.items()}


def _values(column: pa.Array) -> list[Any]:
    kind = column.type
    if pa.types.is_list(kind) and pa.types.is_list(kind.value_type):
        if pa.types.is_list(kind.value_type.value_type):  # only steps have lists of this depth
            codes, offsets = step_codes_of(column)
            return np.split(codes, offsets[1:-1])
        lengths = column.flatten().value_lengths()
        if len(lengths) and lengths[0].as_py() == STYLE_DIM:  # those of landmarks are 2
            return list(codes_of(column))
    values: list[Any] = column.to_pylist()
    return values
