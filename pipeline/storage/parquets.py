"""Samples out of a Parquet file with a column of image bytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import StorageError
from pipeline.storage.columns import NOT_PARQUET, image_column, schema_of
from pipeline.storage.left_out import LeftOut
from pipeline.storage.options import ReadOptions
from pipeline.storage.sample import MAX_SAMPLE_BYTES, Sample, UniqueKeys, too_large
from pipeline.storage.shards import Shard
from pipeline.storage.uris import filesystem, one_line, storage_errors

_KEY_COLUMNS = ("key", "__key__", "image_id", "id", "path", "file_name", "filename", "file")
# Rows of a few kilobytes can share one image of a gigabyte: a row at a time costs 70 µs and memory
# holds one of them.
_BATCH_ROWS = 1
_BUFFER = 4 << 20


def read_parquet(shard: Shard, options: ReadOptions, left_out: LeftOut) -> Iterator[Sample]:
    """One sample a row: bytes from the image column, key from the key column or the row number.

    The image column is the only one of binary type or of the Hugging Face image type (a struct
    with `bytes` and `path`), or the only one of them with a usual name (`image`, `bytes`, `jpg`,
    `content`, ...). The key is the first of `key`, `__key__`, `image_id`, `id`, `path`, `file_name`
    that there is, else the struct's `path`, else the row number in eight digits; a key that comes
    twice gets `~2` behind it. A null image is a sample with empty bytes.
    """
    del options, left_out  # every row is a sample
    fs, path = filesystem(shard.uri)
    row = 0
    with storage_errors(f"read '{shard.uri}'"):
        try:
            with fs.open(path, "rb", block_size=_BUFFER, cache_type="readahead") as file:
                for sample in _rows(file, shard.source):
                    row += 1
                    yield sample
        except (pa.ArrowException, *NOT_PARQUET) as error:
            raise StorageError(
                f"the shard '{shard.uri}' is damaged after {row} samples ({one_line(error)}); "
                "replace it and run again"
            ) from error


def check_columns(shard: Shard) -> None:
    """Raise `InputError` if `shard` is a Parquet file without one clear column of image bytes.

    Reads its footer; one that cannot be read is told of when its samples are.
    """
    if shard.kind != "parquet":
        return
    schema = None
    with suppress(StorageError):
        schema = schema_of(shard.uri)
    if schema is not None:
        image_column(schema, shard.source)


def _rows(file: Any, uri: str) -> Iterator[Sample]:
    # Without pre_buffer Arrow reads a column page by page instead of a row group at once.
    parquet = pq.ParquetFile(
        file, pre_buffer=False, buffer_size=_BUFFER, page_checksum_verification=True
    )
    image_name = image_column(parquet.schema_arrow, uri)
    key_column = next((name for name in _KEY_COLUMNS if name in parquet.schema_arrow.names), None)
    if key_column == image_name:
        key_column = None
    columns = [image_name, *([key_column] if key_column else [])]
    keys = UniqueKeys()
    row = 0
    for batch in parquet.iter_batches(_BATCH_ROWS, columns=columns, use_threads=False):
        images = batch.column(image_name)
        names = batch.column(key_column) if key_column else None
        for index in range(batch.num_rows):
            content, name = _cell(images[index].as_py())
            given = _key(names[index]) if names is not None else _text(name)
            key = keys.take(given or f"{row:08d}")
            yield _sample(key, f"{uri}#{row}", content)
            row += 1


def _cell(value: Any) -> tuple[bytes, str | None]:
    if isinstance(value, dict):
        return value.get("bytes") or b"", value.get("path")
    return value or b"", None


def _key(cell: pa.Scalar) -> str:
    """Empty for a null, and for a date or a text that is none."""
    try:
        return _text(cell.as_py())
    except (ValueError, ArithmeticError):
        return ""


def _text(key: Any) -> str:
    if isinstance(key, bytes):
        return key.decode("utf-8", "backslashreplace")
    return "" if key is None else str(key)


def _sample(key: str, uri: str, content: bytes) -> Sample:
    if len(content) > MAX_SAMPLE_BYTES:
        return too_large(key, uri, len(content))
    return Sample(key, uri, content)
