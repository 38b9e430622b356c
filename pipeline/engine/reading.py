"""Read the latents of a table as a Ray dataset, with codes as tensors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

import numpy as np
import pyarrow as pa
import ray.data
from pyarrow.fs import FileSystem, FSSpecHandler, LocalFileSystem, PyFileSystem
from ray.data import Dataset
from ray.data.extensions import ArrowTensorArray

from pipeline.errors import RequestError
from pipeline.storage import Store, is_local


def read_latents(
    store: Store,
    names: Sequence[str],  # of part files
    schema: pa.Schema,  # of each of them
    columns: Sequence[str] | None = None,  # None or empty: all
) -> LatentsDataset:
    """Return the rows of part files, unordered, as a Ray dataset; starts Ray if none runs.

    Columns of float arrays of one shape, `w_plus` above all, are tensors, where a missing array is
    NaN. Only the `columns` are read. Raises `RequestError` for one that the table does not have.
    """
    chosen = list(columns or schema.names)
    unknown = ", ".join(repr(name) for name in chosen if name not in schema.names)
    if unknown:
        has = ", ".join(schema.names)
        raise RequestError(f"the table '{store.root}' has no column {unknown}; it has {has}")
    rows = Dataset.copy(_read(store, names, schema, chosen), _as=LatentsDataset)
    dataset = cast(LatentsDataset, rows)
    dataset.source = store, names, schema, [name for name in chosen if _fits_torch(schema, name)]
    return dataset


class LatentsDataset(Dataset):
    """Ray dataset of latents; its `iter_torch_batches` takes only columns with a torch dtype."""

    source: tuple[Store, Sequence[str], pa.Schema, list[str]]

    def iter_torch_batches(self, *, collate_fn: Any = None, **options: Any) -> Iterable[Any]:
        """Yield batches as `Dataset.iter_torch_batches` does; `w_plus` is [n, n_styles, 512].

        Without a `collate_fn` a batch has only numbers and tensors: Ray raises an error for
        strings, bytes, booleans and lists of unequal lengths. A missing number is NaN.
        """
        if collate_fn is not None or not self.source[-1]:
            return super().iter_torch_batches(collate_fn=collate_fn, **options)
        return _read(*self.source).iter_torch_batches(**options)


def _read(store: Store, names: Sequence[str], schema: pa.Schema, columns: Sequence[str]) -> Dataset:
    if not names:
        empty = schema.empty_table().select(columns)
        return ray.data.from_arrow(_with_tensors(empty))
    paths = [store.path(name) for name in names]
    # The default would turn folders named `name=value` into columns.
    rows = ray.data.read_parquet(paths, filesystem=_arrow_filesystem(store), partitioning=None)
    rows = rows.select_columns(list(columns))
    return rows.map_batches(_with_tensors, batch_format="pyarrow", batch_size=None)


def _arrow_filesystem(store: Store) -> FileSystem:
    return LocalFileSystem() if is_local(store.root) else PyFileSystem(FSSpecHandler(store.fs))


def _with_tensors(rows: pa.Table) -> pa.Table:
    for index, column in enumerate(rows.schema):
        shape = _tensor_shape(column.type)
        if shape:
            tensors = _tensors(rows.column(index).combine_chunks(), shape)
            rows = rows.set_column(index, column.name, ArrowTensorArray.from_numpy(tensors))
    return rows


def _tensors(column: pa.Array, shape: tuple[int, ...]) -> np.ndarray:
    """Return a column of nested lists as [n, *shape]; NaN for a null."""
    flat = column
    for _ in shape:
        flat = flat.flatten()  # leaves nulls out
    numbers: np.ndarray = flat.to_numpy(zero_copy_only=False).reshape(-1, *shape)
    if not column.null_count:
        return numbers
    tensors = np.full((len(column), *shape), np.nan, numbers.dtype)
    tensors[column.is_valid().to_numpy(zero_copy_only=False)] = numbers
    return tensors


def _tensor_shape(kind: pa.DataType) -> tuple[int, ...]:
    """Return the shape of a nested list of floats whose lengths are fixed; () for other types."""
    shape: tuple[int, ...] = ()
    while pa.types.is_fixed_size_list(kind):
        shape, kind = (*shape, kind.list_size), kind.value_type
    return shape if pa.types.is_floating(kind) else ()


def _fits_torch(schema: pa.Schema, name: str) -> bool:
    kind = schema.field(name).type
    number = pa.types.is_floating(kind) or pa.types.is_integer(kind)
    return number or bool(_tensor_shape(kind))
