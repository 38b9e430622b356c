"""Frames that a query joins with the table: named views of pandas, polars and Arrow tables."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import partial
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv, json, parquet

from pipeline.errors import InputError, RequestError
from pipeline.face_columns import REJECT_COLUMNS, SOURCE_COLUMNS
from pipeline.storage import file_place, one_line
from pipeline.table.statements import check_frame_names

# Columns by which rows are joined. A file's numbers under these names are texts, as in the table.
_TEXTS = {
    *("image_id", "shard", "refined_from"),
    *(name for name, kind in (SOURCE_COLUMNS | REJECT_COLUMNS).items() if kind == pa.string()),
}
# Arrow also raises built-in errors.
_DAMAGE = (pa.ArrowException, OSError, ValueError, LookupError)
_ENDINGS = ".csv, .tsv, .jsonl, .ndjson or .parquet"
_LEADING_ZERO = r"^[+-]?0\d"


def arrow_frames(frames: Mapping[str, Any]) -> dict[str, pa.Table]:
    """Return pandas, polars and Arrow tables as Arrow tables that DuckDB can read, by their names.

    Any object with the Arrow C stream interface is accepted too. A pandas index with a name
    becomes a column. Raises `RequestError` for a name that a query cannot use, and for an object
    that is not such a table.
    """
    check_frame_names(frames)
    return {name: _readable(name, _to_arrow(name, frame)) for name, frame in frames.items()}


def _to_arrow(name: str, frame: Any) -> pa.Table:
    try:
        if type(frame).__module__.split(".")[0] == "pandas":
            is_named = any(level is not None for level in frame.index.names)
            return pa.Table.from_pandas(frame, preserve_index=is_named)
        if hasattr(frame, "__arrow_c_stream__"):
            return pa.table(frame)
    except Exception as error:  # the errors of these libraries have no base class in common
        raise RequestError(f"the frame '{name}' cannot be read: {one_line(error)}") from error
    raise RequestError(
        f"the frame '{name}' is a {type(frame).__name__}: give a pandas, polars or Arrow table"
    )


def _readable(name: str, table: pa.Table) -> pa.Table:
    """Return the table with float32 for float16, which DuckDB cannot read from Arrow."""
    lower = [column.lower() for column in table.column_names]
    if repeated := [column for column in table.column_names if lower.count(column.lower()) > 1]:
        raise RequestError(f"the frame '{name}' has two columns '{repeated[0]}': rename one")
    fields = [field.with_type(_without_halves(field.type)) for field in table.schema]
    return table.cast(pa.schema(fields))


def _without_halves(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_float16(kind):
        return pa.float32()
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_without_halves(kind.value_type), kind.list_size)
    if pa.types.is_list(kind):
        return pa.list_(_without_halves(kind.value_type))
    return kind


def read_frame(uri: str) -> pa.Table:
    """Read a file of labels on any storage: .csv, .tsv, .jsonl, .ndjson or .parquet.

    The whole file is held in memory. Numbers with leading zeros, and columns with the name of a
    text column of the table (`key`, `image_id`, ...), are texts. Raises `InputError` for a file
    that is missing, damaged or of another kind.
    """
    store, name = file_place(uri)
    read = _READERS.get(f".{name.rpartition('.')[2].lower()}")
    if read is None:
        raise InputError(f"'{uri}' is not a file of labels: name a {_ENDINGS} file")
    if not store.exists(name):
        raise InputError(f"'{uri}' is not a file, or does not exist")
    content = io.BytesIO(store.get(name))
    try:
        return read(content)
    except _DAMAGE as error:
        raise InputError(f"'{uri}' cannot be read: {one_line(error)}") from error


def _read_csv(file: BinaryIO, delimiter: str = ",") -> pa.Table:
    options = csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    table = csv.read_csv(file, parse_options=options)
    whole = [field.name for field in table.schema if pa.types.is_integer(field.type)]
    doubtful = [name for name in table.column_names if name in {*whole, *_TEXTS}]
    if not doubtful:
        return table
    file.seek(0)
    texts = csv.read_csv(
        file,
        parse_options=options,
        convert_options=csv.ConvertOptions(
            include_columns=doubtful, column_types=dict.fromkeys(doubtful, pa.string())
        ),
    )
    for name in doubtful:
        if name in _TEXTS or pc.any(pc.match_substring_regex(texts[name], _LEADING_ZERO)).as_py():
            table = table.set_column(table.column_names.index(name), name, texts[name])
    return table


def _read_json(file: BinaryIO) -> pa.Table:
    table = json.read_json(file)
    texts = [
        field.with_type(pa.string())
        if field.name in _TEXTS and pa.types.is_integer(field.type)
        else field
        for field in table.schema
    ]
    return table.cast(pa.schema(texts))


def _read_parquet(file: BinaryIO) -> pa.Table:
    with closing(parquet.ParquetFile(file)) as source:
        return cast(pa.Table, source.read())


_READERS: dict[str, Callable[[BinaryIO], pa.Table]] = {
    ".csv": _read_csv,
    ".tsv": partial(_read_csv, delimiter="\t"),
    ".jsonl": _read_json,
    ".ndjson": _read_json,
    ".parquet": _read_parquet,
}
