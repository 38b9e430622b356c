"""Columns of the table, and conversion of rows to Arrow and of its codes to arrays.

`w_plus` is a nested fixed-size list `[n_styles][512]`, by default of float16. `README.md` lists the
types that it has in each reader.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.choices import CodeType
from pipeline.errors import ConfigError, RequestError, TableError
from pipeline.face_columns import (
    ALIGNMENT_COLUMNS,
    REJECT_COLUMNS,
    SOURCE_COLUMNS,
    TURN_COLUMN,
)
from pipeline.metrics.registry import metric_columns
from pipeline.storage import arrow_type, kept_array

SCHEMA_VERSION = 3
STYLE_DIM = 512

_INT = pa.int32()
_REAL = pa.float32()
_TEXT = pa.string()
_REALS = pa.list_(_REAL)


def code_type(kind: pa.DataType, n_styles: int) -> pa.DataType:
    """Return the type of a code [n_styles, 512] of numbers of a type."""
    return pa.list_(pa.list_(kind, STYLE_DIM), n_styles)


_IDS = {
    "image_id": _TEXT,  # <shard>/<key>, with #<face_index> for a face
    "shard": _TEXT,
}
_METHOD = {
    "method": _TEXT,  # restyle, encoder, optimize, hybrid, or a name given by an import
    "steps": _INT,  # computed for this face
    "best_step": _INT,
    "generator_passes": _INT,  # images that the generator computed for it
    "converged": pa.bool_(),  # true if --steps auto would have stopped by then; null if unknown
    "refined_from": _TEXT,  # image_id of the initial code in the table of --init
}
_EDIT = {
    "direction": pa.list_(_TEXT),  # names of the directions that were added to the code
    "strength": pa.list_(_REAL),  # of each direction
}
IDENTITY = "identity"  # descriptor of the target by the network of `id_similarity`
_METRICS = {name: _REALS if name.endswith("_per_step") else _REAL for name in metric_columns()}
_REQUIRED = {"image_id", "shard", "key", "source_uri", "face_index", "n_faces", "w_plus", "reason"}


@dataclass(frozen=True)
class Columns:
    """Choices that determine a table's columns: size and type of the codes, optional columns.

    `kept` are fields copied from the input, each a name and the name of its Arrow type. `all_steps`
    adds `w_plus_per_step` [steps, n_styles, 512]; `aligned_jpeg`, `reconstruction_jpeg` (bytes),
    `turn_deg` and `identity` (a list of numbers of the codes' type) add the columns of these names;
    `edited` adds `direction` and `strength`.
    """

    n_styles: int
    w_plus_dtype: CodeType = "float16"
    all_steps: bool = False
    aligned_jpeg: bool = False
    reconstruction_jpeg: bool = False
    turn_deg: bool = False
    edited: bool = False
    identity: bool = False
    kept: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        # JSON gives lists, which are not hashable.
        object.__setattr__(self, "kept", tuple((str(name), str(kind)) for name, kind in self.kept))

    def latents_schema(self) -> pa.Schema:
        """Return the Arrow schema of a latents file, without metadata."""
        kind = pa.float16() if self.w_plus_dtype == "float16" else pa.float32()
        code = code_type(kind, self.n_styles)
        turn = TURN_COLUMN if self.turn_deg else {}
        face = {**SOURCE_COLUMNS, **turn, **ALIGNMENT_COLUMNS}
        columns = {**_IDS, **face, "w_plus": code, **_METHOD, **_METRICS}
        if self.all_steps:
            columns["w_plus_per_step"] = pa.list_(code)
        if self.identity:
            columns[IDENTITY] = pa.list_(kind)
        pictures = ("aligned_jpeg", "reconstruction_jpeg")
        columns |= {name: pa.binary() for name in pictures if getattr(self, name)}
        columns |= _EDIT if self.edited else {}
        columns |= {name: arrow_type(kind) for name, kind in self.kept}
        return _schema(columns, _REQUIRED)


def check_kept(names: Iterable[str], *, identity: bool = False) -> None:
    """Raise `ConfigError` if a field to keep has the name of a column of any table.

    A field named `identity` is only refused with `identity`, the request for that column: tables
    with such a field are older than the column.
    """
    # A table of images, which may keep fields of the input, is never an edited one.
    columns = Columns(
        n_styles=1,
        all_steps=True,
        aligned_jpeg=True,
        reconstruction_jpeg=True,
        turn_deg=True,
        identity=identity,
    )
    own = {name.lower() for name in columns.latents_schema().names}
    taken = [name for name in names if name.lower() in own]
    if taken:
        raise ConfigError(
            f"--keep-columns: '{taken[0]}' is the name of a column of the table itself: rename it "
            "in the input or leave it out"
        )


def rejects_schema() -> pa.Schema:
    """Return the Arrow schema of a rejects file, without metadata."""
    return _schema(_IDS | REJECT_COLUMNS, _REQUIRED - {"face_index"})


def image_id(shard_id: str, key: str, face_index: int | None) -> str:
    """Return the id of a face, or of a whole sample if `face_index` is None."""
    return f"{shard_id}/{key}" + ("" if face_index is None else f"#{face_index}")


def latents_table(
    rows: Sequence[Mapping[str, Any]],  # one per face, all columns but image_id and shard
    columns: Columns,
    shard_id: str,
) -> pa.Table:
    """Convert rows of faces to an Arrow table.

    Values are Python scalars, numpy scalars or arrays (`w_plus` [n_styles, 512], `landmarks`
    [68, 2], ...) or None; kept fields have the form that `kept_array` takes. NaN becomes null: the
    value was not measured. Raises `TableError` for a row with a missing or unknown column, and for
    a code that has the wrong shape or is not finite.
    """
    return _table(rows, columns.latents_schema(), shard_id, dict(columns.kept))


def rejects_table(rows: Sequence[Mapping[str, Any]], shard_id: str) -> pa.Table:
    """Convert rows of rejects (all columns but image_id and shard) to an Arrow table."""
    return _table(rows, rejects_schema(), shard_id)


def _schema(columns: Mapping[str, pa.DataType], required: set[str]) -> pa.Schema:
    fields = [pa.field(name, kind, name not in required) for name, kind in columns.items()]
    return pa.schema(fields)


def _table(
    rows: Sequence[Mapping[str, Any]],
    schema: pa.Schema,
    shard_id: str,
    kept: Container[str] = (),
) -> pa.Table:
    given = set(schema.names) - {"image_id", "shard"}
    for row in rows:
        if set(row) != given:
            raise TableError(
                f"a row of shard '{shard_id}' does not fit the table: "
                f"missing {sorted(given - set(row))}, unknown {sorted(set(row) - given)}"
            )
    arrays = [
        kept_array([row[field.name] for row in rows], field.type)
        if field.name in kept
        else _column(field, rows, shard_id)
        for field in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def _column(field: pa.Field, rows: Sequence[Mapping[str, Any]], shard_id: str) -> pa.Array:
    if field.name == "image_id":
        ids = [image_id(shard_id, row["key"], row["face_index"]) for row in rows]
        return pa.array(ids, type=field.type)
    if field.name == "shard":
        return pa.array([shard_id] * len(rows), type=field.type)
    values = [row[field.name] for row in rows]
    if field.name == "w_plus":
        return codes_array([np.asarray(value)[None] for value in values], field.type)
    if field.name == "w_plus_per_step":
        offsets = np.cumsum([0, *(len(value) for value in values)])
        codes = codes_array([np.asarray(value) for value in values], field.type.value_type)
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), codes, type=field.type)
    return _array(values, field)


def codes_array(values: Sequence[np.ndarray], kind: pa.DataType) -> pa.Array:
    """Convert codes [m, n_styles, 512] of rows, without a Python object for each number.

    Raises `TableError` for a code of another shape and one that is not finite as `kind`.
    """
    shape = (kind.list_size, STYLE_DIM)
    number = kind.value_type.value_type
    for value in values:
        if value.shape[1:] != shape:
            raise TableError(f"a W+ code has the shape {value.shape[1:]}, the table needs {shape}")
    stacked = np.concatenate([np.empty((0, *shape), np.float32), *values])
    # Values beyond 65504 become infinite as float16. The check below reports them.
    with np.errstate(over="ignore"):
        numbers = stacked.astype(number.to_pandas_dtype()).reshape(-1)
    if not np.isfinite(numbers).all():
        raise TableError(f"a W+ code is not finite as {number}")
    rows = pa.FixedSizeListArray.from_arrays(pa.array(numbers, number), type=kind.value_type)
    return pa.FixedSizeListArray.from_arrays(rows, type=kind)


def codes_of(column: pa.Array | pa.ChunkedArray) -> NDArray[np.float32]:
    """Return a column of codes, as a file or a query gives it, as float32 [n, n_styles, 512].

    Without rows `n_styles` is 1. Raises `RequestError` for a null.
    """
    if column.null_count:
        raise RequestError("a selected row has no w_plus")
    numbers = pc.list_flatten(column, recursive=True).to_numpy(zero_copy_only=False)
    n_styles = len(numbers) // (STYLE_DIM * len(column)) if len(column) else 1
    return np.asarray(numbers, np.float32).reshape(len(column), n_styles, STYLE_DIM)


class StepCodes(NamedTuple):
    """Codes of all steps of n faces, concatenated face after face."""

    codes: NDArray[np.float32]  # [sum of steps, n_styles, 512]
    offsets: NDArray[np.int64]  # [n + 1]; face i has codes[offsets[i] : offsets[i + 1]]


def step_codes_of(column: pa.ListArray) -> StepCodes:
    """Return a `w_plus_per_step` column from DuckDB; a null is a face without steps."""
    lengths = column.value_lengths().fill_null(0).to_numpy()
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return StepCodes(codes_of(column.flatten()), offsets)


def _array(values: list[Any], field: pa.Field) -> pa.Array:
    try:
        return pa.array([_plain(value) for value in values], type=field.type)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise TableError(f"column '{field.name}' cannot hold its values: {error}") from error


def _plain(value: Any) -> Any:
    """Convert numpy values to Python, and NaN to None."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and value != value else value
