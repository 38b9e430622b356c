"""The files of the table's index: `_index/<folder>/<first shard>-<hash of the content>.parquet`.

A cache: all of it or some of its files may be deleted at any time. A file that is not what its name
says, or not of the columns asked for, is passed over, and so is all that cannot be read. Where a
file lacks columns that have a default, as one of an earlier version does, the default is filled in.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import MISSING, asdict, fields
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import StorageError
from pipeline.storage import Store

# Offsets of 64 bits: what is known of many open parts is more than 2 GiB.
_TYPES = {"str": pa.large_string(), "int": pa.int64()}
# Files that are read at a time, and so held: about 300 KB each.
_THREADS = 16


def schema_of(kind: type) -> pa.Schema:
    """The columns of a dataclass of texts and integers, `shard` among them."""
    return pa.schema([(field.name, _TYPES[str(field.type)]) for field in fields(kind)])


def put_rows(store: Store, folder: str, rows: Sequence[Any]) -> str:
    """Put dataclasses of one kind as one file of `folder`; its name."""
    rows = sorted(rows, key=lambda row: row.shard)
    sink = io.BytesIO()
    schema = schema_of(type(rows[0]))
    pq.write_table(pa.Table.from_pylist([asdict(row) for row in rows], schema=schema), sink)
    content = sink.getvalue()
    name = f"{folder}{rows[0].shard}-{_digest(content)}.parquet"
    store.put(name, content)
    return name


def read_tables(store: Store, folder: str, kind: type) -> Iterator[tuple[str, pa.Table]]:
    """The files of `folder` that hold rows of `kind`: name and content, some at a time."""
    names, schema, defaults = _names(store, folder), schema_of(kind), _defaults(kind)
    with ThreadPoolExecutor(_THREADS) as pool:
        for first in range(0, len(names), _THREADS):
            group = names[first : first + _THREADS]
            tables = pool.map(lambda name: _read(store, name, schema, defaults), group)
            for name, table in zip(group, tables, strict=True):
                if table is not None:
                    yield name, table


def rows_of(table: pa.Table) -> Iterator[tuple[Any, ...]]:
    """The rows, in the order of the columns."""
    return zip(*(column.to_pylist() for column in table.columns), strict=True)


def _names(store: Store, folder: str) -> list[str]:
    try:
        return store.names(folder)
    except StorageError:
        return []


def _defaults(kind: type) -> dict[str, Any]:
    return {field.name: field.default for field in fields(kind) if field.default is not MISSING}


def _read(store: Store, name: str, schema: pa.Schema, defaults: dict[str, Any]) -> pa.Table | None:
    try:
        content = store.get(name)
        if not name.endswith(f"-{_digest(content)}.parquet"):
            return None
        table = pq.ParquetFile(io.BytesIO(content)).read()
    except (pa.ArrowException, StorageError):
        return None
    for place, field in enumerate(schema):
        if field.name in defaults and field.name not in table.column_names:
            column = pa.repeat(pa.scalar(defaults[field.name], field.type), len(table))
            table = table.add_column(place, field, column)
    return table if table.schema.equals(schema) else None


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
