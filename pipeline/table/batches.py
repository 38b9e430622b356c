"""The rows of a table as a stream, a few at a time, and columns of codes as arrays."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import TableError
from pipeline.storage import one_line
from pipeline.table.parts import LATENTS, parse_part_name
from pipeline.table.reader import Table, as_array

# Five steps of 18 x 512 float32 of 64 faces are 12 MB.
_ROWS = 64


class StepCodes(NamedTuple):
    """The codes of all steps of n faces, one face's after the other's."""

    codes: NDArray[np.float32]  # [sum of steps, n_styles, 512]
    offsets: NDArray[np.int32]  # [n + 1]; face i has the codes offsets[i] to offsets[i + 1]


def latents_batches(
    table: Table,
    columns: Sequence[str],
    *,
    shards: Collection[str] | None = None,
    rows: int = _ROWS,
) -> Iterator[pa.Table]:
    """The given columns of all faces, or of those of some shards, at most `rows` a batch.

    In the order of the part files' names. Memory holds one row group of these columns.
    """
    for name in table.store.names(f"{LATENTS}/"):
        parsed = parse_part_name(name)
        if parsed and (shards is None or parsed[0] in shards):
            yield from _file_batches(table, name, columns, rows)


def step_codes(column: pa.ChunkedArray) -> StepCodes:
    """A `w_plus_per_step` column as an array."""
    lists = pa.concat_arrays(column.chunks)
    codes = as_array(pa.chunked_array([lists.flatten()]))
    lengths = lists.value_lengths().fill_null(0).to_numpy()
    return StepCodes(codes, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))


def _file_batches(table: Table, name: str, columns: Sequence[str], rows: int) -> Iterator[pa.Table]:
    try:
        with table.store.open(name) as file:
            parquet = pq.ParquetFile(file)
            for batch in parquet.iter_batches(rows, columns=list(columns)):
                yield pa.Table.from_batches([batch])
    except pa.ArrowException as error:
        uri = table.store.uri(name)
        raise TableError(f"'{uri}' is damaged: {one_line(error)}") from error
