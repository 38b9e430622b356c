"""Write a table as few Parquet files: the same columns and types, in any order.

Every row group has statistics and each page its bounds, so that readers skip what a condition on
any column excludes; `image_id` has a Bloom filter. Codes are not compressed (that saves 8 % of
their size) and are one page per row group, so that one code is one read of its own bytes: see
`parquet_codes`. The metadata have the metrics' definitions and the plan of the export.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import ConfigError, TableError
from pipeline.interop.file_series import ROW_GROUP, Series
from pipeline.storage import OutputKind, Store
from pipeline.table.parts import read_metadata

CODE_PATH = "w_plus.list.element.list.element"  # of the codes' numbers in a Parquet schema
CODE_PAGES = "code_pages"  # metadata; "single": one plain, uncompressed page of codes per row group
EXPORT = "export"  # metadata: the plan
_PREFIX = "restyle."
_PAGE_BYTES = 1 << 30
_NAME = re.compile(r"latents-\d{5}-of-\d{5}\.parquet")

# Rows of a file as they come from the table -> rows as the file has them.
Convert = Callable[[pa.Table], pa.Table]


def _is_export(_: Store, names: Sequence[str]) -> bool:
    return all(map(_NAME.fullmatch, names))


PARQUET_OUTPUT = OutputKind("a folder of Parquet files of an export", _is_export)


def export_parquet(series: Series, uri: str) -> dict[str, int]:
    """Write `latents-<number>-of-<count>.parquet` below `uri`; return counts for the JSON line.

    Files of the same export are kept. Raises `ConfigError` for files of another one.
    """
    schema = series.rows.table.spec.columns.latents_schema().with_metadata(metadata_of(series))
    return write_files(series, Store(uri), "latents", schema)


def write_files(
    series: Series, store: Store, start: str, schema: pa.Schema, convert: Convert | None = None
) -> dict[str, int]:
    """Write the missing files `<start>-<number>-of-<count>.parquet` with this `schema`."""
    names = series.names(start, ".parquet")
    existing = _check_files(series, store, start.rpartition("/")[0])

    def encode(path: Path, tables: Iterator[pa.Table]) -> None:
        with _writer(path, schema, series) as writer:
            for table in tables:
                converted = convert(table) if convert else table
                writer.write_table(converted.cast(schema), row_group_size=ROW_GROUP)

    return series.write(store, names, existing, encode)


def _check_files(series: Series, store: Store, folder: str) -> set[str]:
    """Return the files in `folder`; `ConfigError` for one that is not of the series."""
    existing = set(store.names(f"{folder}/" if folder else ""))
    for name in sorted(existing):
        if not name.endswith(".parquet"):
            raise ConfigError(
                f"'{store.uri(name)}' is not a file of an export: choose an empty or new folder"
            )
        try:
            stored = read_metadata(store, name).get(EXPORT)
        except TableError as error:
            raise ConfigError(f"{error}: delete it, or choose another folder") from error
        series.check_plan(stored, store.uri(name))
    return existing


def metadata_of(series: Series) -> dict[str, str]:
    """Return the file metadata: the table's facts, metric definitions and the plan."""
    spec = series.rows.table.spec
    facts: dict[str, Any] = {
        "schema_version": spec.schema_version,
        "fingerprint": spec.fingerprint,
        "model": dict(spec.model),
        "metrics": dict(spec.metrics),
        EXPORT: dict(series.plan),
        CODE_PAGES: "single",
    }
    return {_PREFIX + name: json.dumps(value, sort_keys=True) for name, value in facts.items()}


def _writer(path: Path, schema: pa.Schema, series: Series) -> pq.ParquetWriter:
    compressed = [name for name in _leaf_paths(schema) if name != CODE_PATH]
    texts = [field.name for field in schema if pa.types.is_string(field.type)]
    sorting = [pq.SortingColumn(schema.get_field_index("image_id"))]
    return pq.ParquetWriter(
        path,
        schema,
        compression={CODE_PATH: "none", **dict.fromkeys(compressed, "zstd")},
        compression_level=dict.fromkeys(compressed, 3),
        use_dictionary=texts,
        data_page_size=_PAGE_BYTES,
        write_page_index=True,
        sorting_columns=sorting if series.plan["sort_by"] == "image_id" else None,
        bloom_filter_options={"image_id": {"ndv": ROW_GROUP, "fpp": 0.01}},
    )


def _leaf_paths(schema: pa.Schema) -> list[str]:
    """Return the paths of the schema's leaves, as Parquet names them."""
    sink = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), sink)
    parquet = pq.ParquetFile(pa.BufferReader(sink.getvalue())).schema
    return [parquet.column(index).path for index in range(len(parquet))]
