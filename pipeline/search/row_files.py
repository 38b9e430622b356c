"""Files of rows, CSV or Parquet, written in batches: memory does not grow with their length."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from pipeline.errors import ConfigError
from pipeline.storage import check_outside, file_place

ROW_SUFFIXES = (".csv", ".parquet")


def check_row_file(uri: str, table: str) -> None:
    """Raise a `RequestError` unless `uri` can be such a file, outside the `table`."""
    if PurePosixPath(uri).suffix.lower() not in ROW_SUFFIXES:
        raise ConfigError(f"--output {uri}: the rows are a CSV or Parquet file: name it *.csv")
    check_outside(table, uri)


def write_rows(uri: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """Write batches as the file `uri`, replacing an earlier one.

    The rows are written to the local disk first. The suffix decides the format.
    """
    store, name = file_place(uri)
    with tempfile.TemporaryDirectory(prefix="restyle-rows-") as temporary:
        path = Path(temporary) / "rows"
        is_csv = name.lower().endswith(".csv")
        writer = pa.csv.CSVWriter if is_csv else pq.ParquetWriter
        with writer(str(path), schema) as file:
            for batch in batches:
                file.write(pa.table(batch) if is_csv else pa.Table.from_batches([batch]))
        store.put(name, path)
