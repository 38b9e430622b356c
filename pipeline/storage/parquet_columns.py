"""Find the column of a Parquet file that holds the images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import InputError
from pipeline.storage.seekable import open_seekable
from pipeline.storage.uris import storage_errors

_IMAGE_COLUMNS = ("image", "img", "bytes", "image_bytes", "content", "jpg", "jpeg", "png", "webp")
# Arrow also raises errors of Python, for invalid texts, numbers and dates.
NOT_PARQUET = (pa.ArrowException, ValueError, ArithmeticError, LookupError, TypeError)


@dataclass(frozen=True)
class ImageColumn:
    """A column of images: bytes, the Hugging Face struct of `bytes` and `path`, or lists of these.

    `path` holds the names from the top-level column down: several if the column is in a struct.
    """

    path: tuple[str, ...]
    kind: pa.DataType

    @property
    def name(self) -> str:
        """Return the name as `--image-column` takes it: `a.b` for the field `b` of a struct."""
        return ".".join(self.path)

    @property
    def is_list(self) -> bool:
        """Return whether a row holds a list of images."""
        return _list_item(_plain(self.kind)) is not None

    @property
    def is_dictionary(self) -> bool:
        """Return whether Arrow stores a row's image as an index into a dictionary of images."""
        return _has_dictionary(self.kind)


def schema_of(uri: str) -> pa.Schema | None:
    """Read the columns of the Parquet file at `uri` from its footer; None if that is damaged.

    Raises `StorageError` if the file cannot be read.
    """
    with (
        suppress(*NOT_PARQUET),
        storage_errors(f"read '{uri}'"),
        open_seekable(uri) as file,
    ):
        return pq.read_schema(file)
    return None


def has_bytes(schema: pa.Schema) -> bool:
    """Return whether some top-level column may hold images."""
    return any(_holds_images(field.type) for field in schema)


def image_column(schema: pa.Schema, uri: str, name: str | None = None) -> ImageColumn:
    """Return the column called `name`, or the column that holds the images.

    Columns of bytes are preferred to dictionaries, and these to lists. Raises `InputError` if
    several columns qualify, if none does, or if the column `name` holds no images.
    """
    if name is not None:
        return _named_column(schema, uri, name)
    columns = [ImageColumn((field.name,), field.type) for field in schema]
    images = [column for column in columns if _holds_images(column.kind)]
    for tier in (
        [column for column in images if not column.is_list and not column.is_dictionary],
        [column for column in images if not column.is_list and column.is_dictionary],
        [column for column in images if column.is_list],
    ):
        usual = [column for column in tier if column.name.lower() in _IMAGE_COLUMNS]
        for candidates in (tier, usual):
            if len(candidates) == 1:
                return candidates[0]
        if tier:
            names = ", ".join(column.name for column in tier)
            raise InputError(
                f"'{uri}' has several columns of images ({names}) and it is not clear which to "
                "take: name one with --image-column"
            )
    raise InputError(_no_images(schema, uri))


def _named_column(schema: pa.Schema, uri: str, name: str) -> ImageColumn:
    columns = [column for column in _all_columns(schema) if column.name == name]
    if not columns:
        names = ", ".join(field.name for field in schema)
        raise InputError(f"--image-column: '{uri}' has no column '{name}'; it has {names}")
    if not _holds_images(columns[0].kind):
        raise InputError(
            f"--image-column: '{name}' of '{uri}' holds no image bytes but {columns[0].kind}"
        )
    return columns[0]


def _no_images(schema: pa.Schema, uri: str) -> str:
    """Return the message for a file without a top-level column of images."""
    inner = [column.name for column in _all_columns(schema) if _holds_images(column.kind)]
    if inner:
        return (
            f"'{uri}' has no top-level column of image bytes; its structs hold "
            f"{', '.join(inner)}: name one with --image-column"
        )
    columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
    return (
        f"'{uri}' has no column of image bytes; its columns are {columns}; if it describes images "
        "that are stored elsewhere, move it out of the input"
    )


def _all_columns(schema: pa.Schema) -> Iterator[ImageColumn]:
    """Yield every top-level column, and the fields of those that are structs."""
    for field in schema:
        yield ImageColumn((field.name,), field.type)
        if pa.types.is_struct(field.type) and not _holds_images(field.type):
            for inner in field.type:
                yield ImageColumn((field.name, inner.name), inner.type)


def _holds_images(kind: pa.DataType) -> bool:
    kind = _plain(kind)
    item = _list_item(kind)
    kind = kind if item is None else _plain(item)
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _is_binary(_plain(kind.field(index).type))
    return _is_binary(kind)


def _plain(kind: pa.DataType) -> pa.DataType:
    """Return the type of a dictionary's values; any other type as it is."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _list_item(kind: pa.DataType) -> pa.DataType | None:
    checks = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return kind.value_type if any(check(kind) for check in checks) else None


def _has_dictionary(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return True
    item = _list_item(kind)
    if item is not None:
        return _has_dictionary(item)
    return pa.types.is_struct(kind) and any(_has_dictionary(field.type) for field in kind)


def _is_binary(kind: pa.DataType) -> bool:
    checks = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    return any(check(kind) for check in checks)
