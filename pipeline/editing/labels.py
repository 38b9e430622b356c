"""Labels of a table's faces, to fit a direction to: a column, a file of labels, two conditions."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import ConfigError, InputError, RequestError
from pipeline.storage.uris import one_line, read_bounded
from pipeline.table.selection import Selection
from pipeline.table.statements import condition

Numbers = NDArray[np.float64]

FOLDS = 5  # of which fold 0 is held out
# Copies of one photo fall on one side of the split.
SPLIT_BY = "coalesce(source_sha256, image_id)"
_KEYS = ("image_id", "key")
_MAX_BYTES = 1 << 30
_ROWS = 1024


class LabelledCodes(NamedTuple):
    """Codes float32 [n, n_styles, 512] with one label each, and the fold of the split, 0..4."""

    codes: NDArray[np.float32]
    labels: Numbers
    folds: NDArray[np.int64]


@dataclass(frozen=True)
class LabelFile:
    """Labels by image id or key, from a CSV or Parquet file."""

    key: str  # `image_id` or `key`: what the labels are for
    values: Mapping[str, float]


@dataclass(frozen=True)
class Labels:
    """Source of one number per face: exactly one of a column, a file, or a second condition.

    `column` is an SQL expression; with `file` it is the name of the file's column, whose texts
    equal to `positive` count as 1. With `against` the faces of the selection's condition have the
    label 1, those of `against` 0. `split_by` is an SQL expression: faces of one value (a person, a
    shard) fall on one side of the split, by a hash of it and `seed`.
    """

    selection: Selection
    column: str = ""
    file: str = ""
    positive: str = ""
    against: str = ""
    split_by: str = SPLIT_BY
    seed: int = 0

    def __post_init__(self) -> None:
        if bool(self.column) == bool(self.against):
            raise ConfigError(
                "say what to fit to: --column NAME, --labels FILE --column NAME, or --where SQL "
                "--against SQL"
            )
        if self.against and not self.selection.where:
            raise ConfigError("--against needs --where: the faces on the other side")
        if self.file and self.against:
            raise ConfigError("--labels goes with --column, not with --against")
        if self.positive and not self.file:
            raise ConfigError(
                "--positive is for texts of --labels; for a column of the table give a condition, "
                "as in --column \"method = 'restyle'\""
            )

    @property
    def description(self) -> str:
        """Label in words, for the card."""
        if self.against:
            return f"{self.selection.where} (1) against {self.against} (0)"
        return self.column + (f" = {self.positive}" if self.positive else "")

    @cached_property
    def labels_file(self) -> LabelFile | None:
        """Labels of the file; None without one."""
        return read_labels(self.file, self.column, self.positive) if self.file else None

    def check(self) -> None:
        """Raise `RequestError` for wrong SQL, a wrong file, or no face; read no code."""
        self._selection.require_rows()
        label = "NULL" if self.labels_file else self._label
        columns = f"({label}) AS label, CAST(({self.split_by}) AS VARCHAR) AS part"
        for batch in replace(self._selection, limit=1).batches(columns, 1):
            if not self.file:
                self._numbers(batch.column(0))

    def batches(self) -> Iterator[LabelledCodes]:
        """Yield the labelled faces, about a thousand at a time; faces without a label are left out.

        Raises `RequestError` for a label that is not a number or a condition, and for a face on
        both sides.
        """
        file = self.labels_file
        label = "NULL" if file else self._label
        columns = f"image_id, key, ({label}) AS label, CAST(({self.split_by}) AS VARCHAR) AS part"
        for batch, codes in self._selection.unordered().code_batches(_ROWS, columns):
            labels = _looked_up(batch, file) if file else self._numbers(batch.column(2))
            known = np.isfinite(labels)
            groups = batch.column(3).to_pylist()
            folds = np.array([fold_of(str(group), self.seed) for group in groups], np.int64)
            yield LabelledCodes(codes[known], labels[known], folds[known])

    @property
    def _selection(self) -> Selection:
        if not self.against:
            return self.selection
        both = f"({condition(self.selection.where)} OR {condition(self.against)})"
        return replace(self.selection, where=both)

    @property
    def _label(self) -> str:
        if not self.against:
            return self.column
        first, second = condition(self.selection.where), condition(self.against)
        return f"CASE WHEN {first} THEN (CASE WHEN {second} THEN 2 ELSE 1 END) ELSE 0 END"

    def _numbers(self, column: pa.Array) -> Numbers:
        if not _is_numeric(column.type):
            raise RequestError(
                f"--column {self.column}: has the type {column.type}, expected numbers or a "
                "condition, as in --column yaw or --column \"method = 'restyle'\""
            )
        numbers: Numbers = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        if self.against and (numbers == 2).any():
            raise RequestError(
                "a face fulfils both --where and --against: make the conditions exclude each other"
            )
        return numbers


def fold_of(group: str, seed: int) -> int:
    """Return the fold, 0..4, of all faces whose value of `split_by` is `group`."""
    digest = hashlib.sha256(f"{seed}\0{group}".encode(errors="replace")).digest()
    return int.from_bytes(digest[:8], "big") % FOLDS


def read_labels(uri: str, column: str, positive: str = "") -> LabelFile:
    """Read the labels in `column` of a CSV or Parquet file with a column `image_id` or `key`.

    Texts need `positive`: those that are equal to it are 1, others 0. Empty values are left out.
    Raises `InputError` for a missing, damaged or ambiguous file.
    """
    table = _table(uri, [*_KEYS, *([column] if positive else [])])
    found = table.column_names
    if twice := next((name for name in (*_KEYS, column) if found.count(name) > 1), None):
        raise InputError(f"--labels '{uri}': has two columns '{twice}': remove or rename one")
    key = next((name for name in _KEYS if name in found), None)
    missing = column if column not in found else None
    if key is None or missing:
        raise InputError(
            f"--labels '{uri}': has no column '{missing or 'image_id'}' (found "
            f"{', '.join(map(repr, found[:8]))}); it needs the label, and image_id or "
            "key"
        )
    names, values = table[key].to_pylist(), table[column]
    if positive:
        texts = values.to_pylist()
        numbers = [None if text in (None, "") else float(text == positive) for text in texts]
    elif not (_is_numeric(values.type) or pa.types.is_null(values.type)):
        raise InputError(
            f"--labels '{uri}': '{column}' has texts such as "
            f"{next((text for text in values.to_pylist() if text), '')!r}: name the one that "
            "counts as 1 with --positive"
        )
    else:
        numbers = [None if value is None else float(value) for value in values.to_pylist()]
    by_name: dict[str, float] = {}
    for name, number in zip(names, numbers, strict=True):
        if name is None or number is None or not np.isfinite(number):
            continue
        if by_name.setdefault(name, number) != number:
            raise InputError(f"--labels '{uri}': '{name}' has two labels")
    if not by_name:
        raise InputError(f"--labels '{uri}': the column '{column}' has no labels")
    return LabelFile(key, by_name)


def _table(uri: str, texts: list[str]) -> pa.Table:
    """Read a file of labels; the columns `texts` become texts, those of a CSV as they are: 007."""
    content = read_bounded(
        uri,
        _MAX_BYTES,
        missing=f"--labels: there is no file '{uri}'",
        large=f"--labels '{uri}': larger than {_MAX_BYTES >> 30} GiB",
    )
    try:
        if PurePosixPath(uri).suffix.lower() == ".parquet":
            table = pq.read_table(pa.BufferReader(content))
            kinds = [
                field.with_type(pa.string()) if field.name in texts else field
                for field in table.schema
            ]
            return table.cast(pa.schema(kinds))
        options = pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(texts, pa.string()), strings_can_be_null=True
        )
        return pyarrow.csv.read_csv(io.BytesIO(content), convert_options=options)
    except (pa.ArrowException, ValueError, OSError) as error:
        raise InputError(
            f"--labels '{uri}': not a CSV or .parquet file, or damaged ({one_line(error)})"
        ) from error


def _is_numeric(kind: pa.DataType) -> bool:
    """Return whether values of this type are numbers, or true and false."""
    number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    return bool(number or pa.types.is_boolean(kind))


def _looked_up(batch: pa.RecordBatch, file: LabelFile) -> Numbers:
    names: list[Any] = batch.column(_KEYS.index(file.key)).to_pylist()
    return np.array([file.values.get(name, np.nan) for name in names], np.float64)
