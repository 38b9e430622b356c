"""Fields of an input that travel with its images into the table: their types and values.

A value travels as JSON, from its reader to the part that is written. Of Parquet columns the table
has numbers, truth values, dates, times and texts as they are; what is nested or has no such type
becomes text (JSON). What stands in sidecars is text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipeline.storage.left_out import LeftOut

# Of one value, and of a sidecar: longer ones are taken for missing.
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
    """The Arrow type that a column of the table has; `ValueError` for a name of none."""
    if name in _SCALARS:
        return _SCALARS[name]
    match = _TIMESTAMP.fullmatch(name)
    if not match:
        raise ValueError(f"'{name}' is no type of a column that is carried over")
    return pa.timestamp(match[1], match[2])


def type_name(kind: pa.DataType) -> str | None:
    """The name of the type that a Parquet column has in the table; None for one with bytes."""
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


def cell_value(cell: pa.Scalar, wanted: str) -> Any:
    """A Parquet cell as it travels: JSON-ready, of the table's type `wanted`; None for a null."""
    if not cell.is_valid:
        return None
    if isinstance(cell, pa.DictionaryScalar):
        return cell_value(cell.value, wanted)
    if wanted != TEXT:
        kind = arrow_type(wanted)
        if pa.types.is_date(kind):
            return cell.cast(pa.int32()).as_py()
        if pa.types.is_timestamp(kind):
            return cell.cast(pa.int64()).as_py()
        return cell.as_py()
    if pa.types.is_string(cell.type) or pa.types.is_large_string(cell.type):
        return _bounded(cell.as_buffer().to_pybytes().decode("utf-8", "backslashreplace"))
    return text_of(cell.as_py())


def text_of(value: Any) -> str | None:
    """Any value as text: a text as it is, others as JSON; None for null and what is too long."""
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
    values: Mapping[str, Any],  # that the archive knows of the image itself
    wanted: Mapping[str, str],  # name -> type
    left_out: LeftOut,
) -> str:
    """The fields of one image as `Sample.fields` has them.

    A name is looked up in `values`, then as the extension of a sidecar, then as a field of the
    `.json` sidecar; `json.a.b` looks for a field in a field. One that is missing, or not of the
    table's type, is null, and counted in `left_out` as "(no <name>)".
    """
    described = {**_json_object(sidecars.get("json", b"")), **values}
    found = {}
    for name, kind in wanted.items():
        if name in sidecars and name not in values:
            found[name] = _sidecar_text(sidecars[name])
        else:
            found[name] = _described(described, name)
        found[name] = to_type(found[name], kind)
    return to_json(found, left_out)


def to_json(fields: Mapping[str, Any], left_out: LeftOut) -> str:
    """`Sample.fields` of JSON-ready values; the nulls among them are counted."""
    for name, value in fields.items():
        if value is None:
            left_out.add(f"(no {name})")
    return json.dumps(fields)


def to_type(value: Any, wanted: str) -> Any:
    """A value of an archive as the table's type takes it; None where it does not."""
    if wanted == TEXT:
        return text_of(value)
    kind = arrow_type(wanted)
    cut = pa.types.is_integer(kind) and isinstance(value, float) and not value.is_integer()
    if value is None or cut:  # Arrow makes 1 of 1.5
        return None
    try:
        return cell_value(pa.array([value], kind)[0], wanted)
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        return None


def kept_array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Values as they travel as an Arrow array of the table's type."""
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


def _json_object(content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content) if content else {}
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _described(fields: Mapping[str, Any], name: str) -> Any:
    """The field `name`, or `b` in `a` of `a.b`; "json." before it says where it is."""
    for path in (name, name.removeprefix("json.")):
        if path in fields:
            return fields[path]
        value: Any = fields
        for part in path.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value is not None:
            return value
    return None
