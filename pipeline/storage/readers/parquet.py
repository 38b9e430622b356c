"""Read the samples of a Parquet file with a column of image bytes."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import InputError, StorageError
from pipeline.storage.kept_columns import TEXT, cell_value, to_json, type_name
from pipeline.storage.left_out import LeftOut
from pipeline.storage.parquet_columns import NOT_PARQUET, ImageColumn, image_column, schema_of
from pipeline.storage.read_options import ReadOptions
from pipeline.storage.readers.memory_limit import MemoryLimit
from pipeline.storage.readers.parquet_pages import CheckedFile
from pipeline.storage.readers.referenced_images import read_referenced_image
from pipeline.storage.sample import MAX_SAMPLE_BYTES, Sample, UniqueKeys, too_large
from pipeline.storage.seekable import open_seekable
from pipeline.storage.shards import Shard
from pipeline.storage.uris import storage_errors

_KEY_COLUMNS = ("key", "__key__", "image_id", "id", "path", "file_name", "filename", "file")
# Rows of a few kilobytes can share one image of a gigabyte: with batches of one row, which cost
# 70 µs each, memory holds one copy.
_BATCH_ROWS = 1
_BUFFER = 4 << 20
# Memory that Arrow may use for one row: a page of 256 MB compressed, unpacked and copied, and more
# for larger files.
_FREE_MEMORY, _GROWTH = 2 << 30, 4
_ARROW_SCHEMA, _NO_SCHEMA = b"ARROW:schema", b"arrow-schema"


def read_parquet(shard: Shard, options: ReadOptions, left_out: LeftOut) -> Iterator[Sample]:
    """Yield one sample per row, or per image if rows hold lists of images.

    The image column is `options.image_column`, else the only one of binary type or of the Hugging
    Face image type (a struct with `bytes` and `path`), or the only one of them with a usual name
    (`image`, `bytes`, `jpg`, `content`, ...); else a dictionary of these, else lists of these.
    The key is the first existing column of `key`, `__key__`, `image_id`, `id`, `path`, `file_name`,
    else the struct's `path`, else the row number in eight digits. A repeated key is followed by
    `~2`; the images of a list have the keys `key/0`, `key/1`, ....

    For a null or empty image the file at its path is read, as `read_referenced_image` allows.
    Without a path, and for an empty list, the sample is a `no_bytes` reject. Memory holds one row.
    Missing fields are counted in `left_out`.
    """
    with open_seekable(shard.uri, _BUFFER) as file:
        yield from _samples(file, shard, options, left_out)


def check_columns(shard: Shard, options: ReadOptions | None = None) -> None:
    """Raise `InputError` if `shard` is a Parquet file without one clear column of image bytes.

    Reads only the footer. A file that cannot be read is reported when its samples are read.
    """
    if shard.kind != "parquet":
        return
    schema = None
    with suppress(StorageError):
        schema = schema_of(shard.uri)
    if schema is not None:
        image_column(schema, shard.source, options.image_column if options else None)


def column_types(shard: Shard, names: Sequence[str]) -> dict[str, str]:
    """Return the types in the table of the columns `names` of a Parquet file.

    Raises `InputError` for a column that does not exist or holds bytes.
    """
    schema = schema_of(shard.uri)
    return {} if schema is None else {name: _type_of(schema, name, shard) for name in names}


def count_rows(shard: Shard, options: ReadOptions) -> int:
    """Return the number of samples of a Parquet file by its footer; 0 if its reader refuses it.

    Each image of a list is a sample, and so is an empty or null list.
    """
    try:
        with storage_errors(f"read '{shard.uri}'"), open_seekable(shard.uri) as file:
            metadata = pq.read_metadata(file)
        image = image_column(metadata.schema.to_arrow_schema(), shard.source, options.image_column)
        if image.is_list:
            groups = (metadata.row_group(index) for index in range(metadata.num_row_groups))
            return sum(_leaf_values(group, image) for group in groups)
        return int(metadata.num_rows)
    except (InputError, *NOT_PARQUET):
        return 0  # the reader reports why


def _leaf_values(group: Any, image: ImageColumn) -> int:
    """Return the number of values, nulls included, in the first leaf of a column's row group."""
    columns = (group.column(index) for index in range(group.num_columns))
    leaves = (leaf for leaf in columns if f"{leaf.path_in_schema}.".startswith(f"{image.name}."))
    return sum(int(leaf.num_values) for leaf in itertools.islice(leaves, 1))


class _OpenFile(NamedTuple):
    """An open Parquet file and the columns to read."""

    parquet: pq.ParquetFile
    image: ImageColumn
    key_column: str | None
    fields: tuple[str, ...]


def _samples(file: Any, shard: Shard, options: ReadOptions, left_out: LeftOut) -> Iterator[Sample]:
    opened = _open_file(file, shard, options)
    keys = UniqueKeys()
    columns = {opened.image.name, *opened.fields, *filter(None, [opened.key_column])}
    batches = opened.parquet.iter_batches(_BATCH_ROWS, columns=[*columns], use_threads=False)
    limit = MemoryLimit(_FREE_MEMORY + _GROWTH * file.seek(0, 2))
    row = 0
    while (batch := _next(batches, limit)) is not None:
        for index in range(batch.num_rows):
            fields = _fields(batch, index, options, left_out)
            for sample in _row(batch, index, row, opened, shard):
                yield replace(sample, key=keys.take(sample.key), fields=fields)
            row += 1


def _next(batches: Iterator[pa.RecordBatch], limit: MemoryLimit) -> pa.RecordBatch | None:
    """Return the next rows; `ValueError` if they need far more memory than the file is large."""
    try:
        with limit:
            return next(batches, None)
    except MemoryError as error:
        raise ValueError("a row needs far more memory than the file has bytes") from error


def _open_file(file: Any, shard: Shard, options: ReadOptions) -> _OpenFile:
    # Without pre_buffer Arrow reads a column page by page instead of a row group at once.
    reading = {"pre_buffer": False, "buffer_size": _BUFFER, "page_checksum_verification": True}
    file = CheckedFile(file)
    parquet = pq.ParquetFile(file, **reading)
    schema = parquet.schema_arrow
    image = image_column(schema, shard.source, options.image_column)
    key_column = next((name for name in _KEY_COLUMNS if name in schema.names), None)
    if key_column == image.path[0]:
        key_column = None
    fields = tuple(name for name in options.keep_columns if name in schema.names)
    for name in fields:
        _check_type(schema, name, options.keep_columns[name], shard)
    if any(pa.types.is_dictionary(field.type) for field in schema) or image.is_dictionary:
        parquet = pq.ParquetFile(file, metadata=_without_dictionaries(file), **reading)
    columns = {image.path[0], *fields, *filter(None, [key_column])}
    file.watch(parquet.metadata, columns)
    return _OpenFile(parquet, image, key_column, fields)


def _without_dictionaries(file: Any) -> pq.FileMetaData:
    """Return the file's footer without Arrow's schema.

    With dictionary types of Arrow's schema every batch of one row would hold a whole dictionary.
    Parquet's own types are equal for all columns that are read here, except for dictionaries.
    """
    size = file.seek(0, 2)
    file.seek(size - 8)
    length = int.from_bytes(file.read(8)[:4], "little")
    file.seek(max(0, size - 8 - length))
    footer = file.read(length).replace(_ARROW_SCHEMA, _NO_SCHEMA)
    tail = length.to_bytes(4, "little") + b"PAR1"
    return pq.read_metadata(io.BytesIO(b"PAR1" + footer + tail))


def _check_type(schema: pa.Schema, name: str, expected: str, shard: Shard) -> None:
    actual = _type_of(schema, name, shard)
    if expected not in (actual, TEXT) and not pa.types.is_null(schema.field(name).type):
        raise InputError(
            f"--keep-columns: '{name}' is {actual} in '{shard.source}' and {expected} in the "
            "input's first shard; make them the same type or leave the column out"
        )


def _type_of(schema: pa.Schema, name: str, shard: Shard) -> str:
    if name not in schema.names:
        names = ", ".join(schema.names)
        raise InputError(
            f"--keep-columns: '{shard.source}' has no column '{name}'; its columns are {names}"
        )
    kind = schema.field(name).type
    target = type_name(kind)
    if target is None:
        raise InputError(
            f"--keep-columns: '{name}' of '{shard.source}' is {kind}, and bytes are not kept: "
            "leave the column out"
        )
    return target


def _fields(batch: pa.RecordBatch, index: int, options: ReadOptions, left_out: LeftOut) -> str:
    if not options.keep_columns:
        return ""
    names = batch.schema.names
    values = {
        name: cell_value(batch.column(name)[index], kind) if name in names else None
        for name, kind in options.keep_columns.items()
    }
    return to_json(values, left_out)


def _row(
    batch: pa.RecordBatch, index: int, row: int, opened: _OpenFile, shard: Shard
) -> Iterator[Sample]:
    """Yield the images of one row, with keys that are not yet unique in the shard."""
    cell: Any = batch.column(opened.image.path[0])[index]
    for name in opened.image.path[1:]:
        cell = cell[name] if cell.is_valid else cell
    uri = f"{shard.source}#{row}"
    given = _key(batch.column(opened.key_column)[index]) if opened.key_column else ""
    if not opened.image.is_list:
        content, path = _image(cell)
        key = given or ("" if opened.key_column else _text(path)) or f"{row:08d}"
        yield _sample(key, uri, content, path, shard)
        return
    given = given or f"{row:08d}"
    images = cell.values if cell.is_valid else ()
    if not len(images):
        yield Sample(given, uri, b"", "no_bytes", "the row's list of images is empty or null")
    for place, image in enumerate(images):
        content, path = _image(image)
        yield _sample(f"{given}/{place}", f"{uri}/{place}", content, path, shard)


def _image(cell: Any) -> tuple[bytes | None, Any]:
    """Return the bytes and the path of an image; None for each that is null or missing."""
    if not cell.is_valid:
        return None, None
    if isinstance(cell, pa.StructScalar):
        names = [field.name for field in cell.type]
        return cell["bytes"].as_py(), cell["path"].as_py() if "path" in names else None
    return cell.as_py(), None


def _key(cell: pa.Scalar) -> str:
    """Return a cell as a key; empty for a null, and for an invalid date or text."""
    try:
        return _text(cell.as_py())
    except (ValueError, ArithmeticError):
        return ""


def _text(key: Any) -> str:
    if isinstance(key, bytes):
        return key.decode("utf-8", "backslashreplace")
    return "" if key is None else str(key)


def _sample(key: str, uri: str, content: bytes | None, path: Any, shard: Shard) -> Sample:
    if not content:
        return read_referenced_image(shard.uri, path if isinstance(path, str) else None, key, uri)
    if len(content) > MAX_SAMPLE_BYTES:
        return too_large(key, uri, len(content))
    return Sample(key, uri, content)
