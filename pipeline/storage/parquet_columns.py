"""Which column of a Parquet file holds the images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import InputError
from pipeline.storage.seekable import opened
from pipeline.storage.uris import storage_errors

_IMAGE_COLUMNS = ("image", "img", "bytes", "image_bytes", "content", "jpg", "jpeg", "png", "webp")
# Arrow also raises Python's own errors, for texts, numbers and dates that are none.
NOT_PARQUET = (ValueError, ArithmeticError, LookupError, TypeError)


@dataclass(frozen=True)
class ImageColumn:
    """A column of images: bytes, the Hugging Face struct of `bytes` and `path`, or lists of one.

    `path` are the names from the top column to it: more than one if it lies in structs.
    """

    path: tuple[str, ...]
    kind: pa.DataType

    @property
    def name(self) -> str:
        """As `--image-column` takes it, and Parquet: `a.b` of a field in a struct."""
        return ".".join(self.path)

    @property
    def is_list(self) -> bool:
        """Whether a row holds a list of images."""
        return _list_item(_plain(self.kind)) is not None

    @property
    def is_dictionary(self) -> bool:
        """Whether Arrow gives a row's images as numbers in a dictionary of all of them."""
        return _has_dictionary(self.kind)


def schema_of(uri: str) -> pa.Schema | None:
    """The columns of the Parquet file at `uri`, by its footer; None where that is damaged.

    Raises `StorageError` where the storage does not give it.
    """
    with (
        suppress(pa.ArrowException, *NOT_PARQUET),
        storage_errors(f"read '{uri}'"),
        opened(uri) as file,
    ):
        return pq.read_schema(file)
    return None


def has_bytes(schema: pa.Schema) -> bool:
    """Whether some column may hold images."""
    return any(_holds_images(field.type) for field in schema)


def image_column(schema: pa.Schema, uri: str, asked: str | None = None) -> ImageColumn:
    """The column `asked` for, else the one with the images.

    Columns of bytes come before those with a dictionary, and those before lists. Raises
    `InputError` where it is not clear which, or what is asked for is none.
    """
    if asked is not None:
        return _asked(schema, uri, asked)
    found = [ImageColumn((field.name,), field.type) for field in schema]
    found = [column for column in found if _holds_images(column.kind)]
    for tier in (
        [one for one in found if not one.is_list and not one.is_dictionary],
        [one for one in found if not one.is_list and one.is_dictionary],
        [one for one in found if one.is_list],
    ):
        usual = [column for column in tier if column.name.lower() in _IMAGE_COLUMNS]
        for columns in (tier, usual):
            if len(columns) == 1:
                return columns[0]
        if tier:
            names = ", ".join(column.name for column in tier)
            raise InputError(
                f"'{uri}' has several columns of images ({names}) and it is not clear which to "
                "take: name one with --image-column"
            )
    raise InputError(_none_of(schema, uri))


def _asked(schema: pa.Schema, uri: str, asked: str) -> ImageColumn:
    columns = [column for column in _all_columns(schema) if column.name == asked]
    if not columns:
        known = ", ".join(field.name for field in schema)
        raise InputError(f"--image-column: '{uri}' has no column '{asked}'; it has {known}")
    if not _holds_images(columns[0].kind):
        raise InputError(
            f"--image-column: '{asked}' of '{uri}' holds no image bytes but {columns[0].kind}"
        )
    return columns[0]


def _none_of(schema: pa.Schema, uri: str) -> str:
    inner = [one.name for one in _all_columns(schema) if _holds_images(one.kind)]
    if inner:
        return (
            f"'{uri}' has no column of image bytes at its top; in its structs there are "
            f"{', '.join(inner)}: name one with --image-column"
        )
    columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
    return (
        f"'{uri}' has no column of image bytes; its columns are {columns}; if it describes images "
        "that lie elsewhere, move it out of the input"
    )


def _all_columns(schema: pa.Schema) -> Iterator[ImageColumn]:
    """Every column, and the fields of structs, at two levels."""
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
    """Of a dictionary the type of its values."""
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
