"""Types and values of the input's fields that `--keep-columns` copies into the table.

A value is passed as JSON from the reader to the writer of the table. Parquet columns of numbers,
booleans, dates, times and texts keep their types; nested and other columns become text (JSON).
Sidecar files give text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipeline.storage.left_out import LeftOut

# Limit for one value or sidecar file; a longer one counts as missing.
MAX_FIELD_BYTES = 1 << 20
TEXT = "string"
_SCALARS = {
    str(kind): kind
    for kind in (
        *(pa.bool_(), pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.float32(), pa.float64()),
        *(pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64(), pa.string(), pa.date32()),
    )
}
_TIMESTAMP = re.compile(r"timestamp\[(s|ms|us|ns)(?:, tz=([^\]]+))?\]")


def arrow_type(name: str) -> pa.DataType:
    """Return the Arrow type called `name`; `ValueError` if no kept column can have it."""
    if name in _SCALARS:
        return _SCALARS[name]
    match = _TIMESTAMP.fullmatch(name)
    if not match:
        raise ValueError(f"'{name}' is not the type of a kept column")
    return pa.timestamp(match[1], match[2])


def type_name(kind: pa.DataType) -> str | None:
    """Return the name of the type that a Parquet column gets in the table; None for bytes."""
    if pa.types.is_dictionary(kind):
        return type_name(kind.value_type)
    if pa.types.is_float16(kind):
        return str(pa.float32())
    if str(kind) in _SCALARS or pa.types.is_timestamp(kind):
        return str(kind)
    return None if _has_bytes(kind) else TEXT


def _has_bytes(kind: pa.DataType) -> bool:
    checks = ("binary", "large_binary", "binary_view", "fixed_size_binary")
    if any(getattr(pa.types, f"is_{check}")(kind) for check in checks):
        return True
    inner = (kind.field(index).type for index in range(kind.num_fields))
    return any(map(_has_bytes, inner))


def cell_value(cell: pa.Scalar, target: str) -> Any:
    """Return a Parquet cell as a JSON-ready value of the table's type `target`; None for null."""
    if not cell.is_valid:
        return None
    if isinstance(cell, pa.DictionaryScalar):
        return cell_value(cell.value, target)
    if target != TEXT:
        kind = arrow_type(target)
        if pa.types.is_date(kind):
            return cell.cast(pa.int32()).as_py()
        if pa.types.is_timestamp(kind):
            return cell.cast(pa.int64()).as_py()
        return cell.as_py()
    if pa.types.is_string(cell.type) or pa.types.is_large_string(cell.type):
        return _bounded(cell.as_buffer().to_pybytes().decode("utf-8", "backslashreplace"))
    return text_of(cell.as_py())


def text_of(value: Any) -> str | None:
    """Return `value` as text: a string as it is, others as JSON; None for null or too long."""
    if value is None or isinstance(value, str):
        return None if value is None else _bounded(value)
    plain = isinstance(value, bool | int | float | list | dict)
    return _bounded(json.dumps(value, ensure_ascii=False, default=str) if plain else str(value))


def _bounded(text: str) -> str | None:
    # A lone surrogate has no UTF-8 form; JSON can write one.
    clean = text.encode("utf-8", "backslashreplace").decode()
    return clean if len(clean) <= MAX_FIELD_BYTES else None


def fields_of(
    sidecars: Mapping[str, bytes],  # extension or webdataset field -> content
    values: Mapping[str, Any],  # fields that the archive itself has for the image
    types: Mapping[str, str],  # name -> type
    left_out: LeftOut,
) -> str:
    """Return the fields of one image in the form of `Sample.fields`.

    A name is looked up in `values`, then as the extension of a sidecar, then as a field of the
    `.json` sidecar; `json.a.b` looks up the field `b` of the field `a`. A field that is missing, or
    not of the table's type, is null and counted in `left_out` as "(no <name>)".
    """
    document = {**json_object(sidecars.get("json", b"")), **values}
    fields = {}
    for name, kind in types.items():
        if name in sidecars and name not in values:
            value = _sidecar_text(sidecars[name])
        else:
            value = _look_up(document, name)
        fields[name] = to_type(value, kind)
    return to_json(fields, left_out)


def to_json(fields: Mapping[str, Any], left_out: LeftOut) -> str:
    """Write JSON-ready values as `Sample.fields` has them, and count the nulls."""
    for name, value in fields.items():
        if value is None:
            left_out.add(f"(no {name})")
    return json.dumps(fields)


def to_type(value: Any, target: str) -> Any:
    """Convert a value to the table's type `target`; None if it does not fit."""
    if target == TEXT:
        return text_of(value)
    kind = arrow_type(target)
    fraction = pa.types.is_integer(kind) and isinstance(value, float) and not value.is_integer()
    if value is None or fraction:  # Arrow would truncate 1.5 to 1
        return None
    try:
        return cell_value(pa.array([value], kind)[0], target)
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        return None


def kept_array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Return JSON-ready values, as `cell_value` gives them, as an Arrow array of type `kind`."""
    if pa.types.is_date(kind):
        return pa.array(values, pa.int32()).cast(kind)
    if pa.types.is_timestamp(kind):
        return pa.array(values, pa.int64()).cast(kind)
    return pa.array(values, kind)


def _sidecar_text(content: bytes) -> str | None:
    try:
        return content.decode().strip()
    except UnicodeDecodeError:
        return None


def json_object(content: bytes | str) -> dict[str, Any]:
    """Return the JSON object in `content`; {} if it is empty, damaged or other JSON."""
    try:
        value = json.loads(content) if content else {}
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _look_up(fields: Mapping[str, Any], name: str) -> Any:
    """Return the field `name`, also nested as in `a.b` or after "json."; None if missing."""
    for path in (name, name.removeprefix("json.")):
        if path in fields:
            return fields[path]
        value: Any = fields
        for part in path.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value is not None:
            return value
    return None
