"""Files of rows, CSV or Parquet, written in batches: memory does not grow with their length."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from pipeline.errors import ConfigError
from pipeline.storage import Store, canonical_uri, check_beside, check_output

ROW_SUFFIXES = (".csv", ".parquet")


def check_row_file(uri: str, table: str) -> None:
    """Raise a `RequestError` unless `uri` can be such a file, outside the `table`."""
    if PurePosixPath(uri).suffix.lower() not in ROW_SUFFIXES:
        raise ConfigError(f"--output {uri}: the rows are a CSV or Parquet file: name it *.csv")
    folder = canonical_uri(uri).rpartition("/")[0] or "/"
    check_beside(table, canonical_uri(uri), what="table", why="where its jobs alone write")
    check_output(folder)


def write_rows(uri: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> int:
    """Write batches as the file `uri`, replacing an earlier one; return the number of rows.

    The rows are written to the local disk first. The suffix decides the format.
    """
    folder, _, name = canonical_uri(uri).rpartition("/")
    rows = 0
    with tempfile.TemporaryDirectory(prefix="restyle-rows-") as temporary:
        path = Path(temporary) / "rows"
        is_csv = name.lower().endswith(".csv")
        writer = pa.csv.CSVWriter if is_csv else pq.ParquetWriter
        with writer(str(path), schema) as file:
            for batch in batches:
                file.write(pa.table(batch) if is_csv else pa.Table.from_batches([batch]))
                rows += batch.num_rows
        Store(folder or "/").put_file(name, path)
    return rows
