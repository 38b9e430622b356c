"""Which column of a Parquet file holds the images."""

from __future__ import annotations

from contextlib import suppress

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import InputError
from pipeline.storage.uris import filesystem, storage_errors

_IMAGE_COLUMNS = ("image", "img", "bytes", "image_bytes", "content", "jpg", "jpeg", "png", "webp")
# Arrow also raises Python's own errors, for texts, numbers and dates that are none.
NOT_PARQUET = (ValueError, ArithmeticError, LookupError, TypeError)


def schema_of(uri: str) -> pa.Schema | None:
    """The columns of the Parquet file at `uri`, by its footer; None where that is damaged.

    Raises `StorageError` where the storage does not give it.
    """
    fs, path = filesystem(uri)
    with (
        suppress(pa.ArrowException, *NOT_PARQUET),
        storage_errors(f"read '{uri}'"),
        fs.open(path, "rb") as file,
    ):
        return pq.read_schema(file)
    return None


def has_bytes(schema: pa.Schema) -> bool:
    """Whether some column may hold images."""
    return any(_holds_bytes(field.type) for field in schema)


def image_column(schema: pa.Schema, uri: str) -> str:
    """The column with the images; `InputError` where it is not clear which."""
    found = [field.name for field in schema if _holds_bytes(field.type)]
    usual = [name for name in found if name.lower() in _IMAGE_COLUMNS]
    for names in (found, usual):
        if len(names) == 1:
            return str(names[0])
    columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
    if found:
        raise InputError(
            f"'{uri}' has several columns of bytes ({', '.join(found)}) and it is not clear which "
            "holds the images; leave one of them in the file"
        )
    raise InputError(
        f"'{uri}' has no column of image bytes; its columns are {columns}; if it describes images "
        "that lie elsewhere, move it out of the input"
    )


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _is_binary(kind.field(index).type)
    return _is_binary(kind)


def _is_binary(kind: pa.DataType) -> bool:
    checks = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    return any(check(kind) for check in checks)
