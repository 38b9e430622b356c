"""Read codes of Parquet files by image id or by name: exports of this library, and other files.

In a file of `parquet_files` the codes of a row group are one page, neither compressed nor encoded,
at the end of its column chunk: a code is read as its own bytes. Files of other writers are decoded
by Arrow. A file that claims this layout is believed if its first code, read so, is the one that
Arrow reads: with a second page all codes before it would be shifted.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import InputError, RequestError, TableError
from pipeline.interop.parquet_files import CODE_PAGES, CODE_PATH
from pipeline.interop.pickled_codes import STYLE_DIM
from pipeline.storage import Store, canonical_uri, is_local, one_line
from pipeline.storage.uris import storage_errors
from pipeline.table.parts import decode_metadata, read_footer
from pipeline.table.reader import UnknownImageError

_THREADS = 16
_SPOOL_ROWS = 64
_DAMAGE = (pa.ArrowException, OSError, ValueError, LookupError, UnicodeDecodeError)
_NUMBER: dict[str, np.dtype[Any]] = {
    "FIXED_LEN_BYTE_ARRAY": np.dtype("<f2"),
    "FLOAT": np.dtype("<f4"),
}


class _Chunk(NamedTuple):
    """Plain codes of one row group: bytes from `start` on."""

    start: int
    rows: int


class CodeFile:
    """Parquet file with a column `w_plus`."""

    def __init__(self, store: Store, name: str) -> None:
        """Read the footer. Raises `InputError` for a damaged file and one without codes."""
        self.store, self.name, self.uri = store, name, store.uri(name)
        try:
            self.footer = read_footer(store, name)
            self.schema = self.footer.schema.to_arrow_schema()
            self.metadata = decode_metadata(self.footer.metadata)
        except TableError as error:
            raise InputError(str(error)) from error
        if "w_plus" not in self.schema.names:
            listed = ", ".join(self.schema.names[:5])
            raise InputError(f"'{self.uri}' has no column w_plus (its columns are {listed})")

    @property
    def rows(self) -> int:
        """Number of rows."""
        return int(self.footer.num_rows)

    def column(self, name: str, groups: Sequence[int] | None = None) -> pa.ChunkedArray:
        """Read a column of all row groups, or of `groups`."""
        chosen = range(self.footer.num_row_groups) if groups is None else groups
        with _reading(self.uri), self.store.open(self.name) as file:
            parquet = pq.ParquetFile(file, metadata=self.footer)
            return parquet.read_row_groups(list(chosen), [name])[name]

    @cached_property
    def group_starts(self) -> NDArray[np.int64]:
        """Number of the first row of each row group, and of all rows."""
        counts = [
            self.footer.row_group(group).num_rows for group in range(self.footer.num_row_groups)
        ]
        return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    def groups_with(self, ids: Sequence[str]) -> list[int]:
        """Return the row groups that may hold one of the sorted `ids`, by their statistics."""
        index = self._leaves["image_id"]
        expected = np.array(ids, object)
        chosen = []
        for group in range(self.footer.num_row_groups):
            statistics = self.footer.row_group(group).column(index).statistics
            if statistics is not None and statistics.has_min_max:
                first = np.searchsorted(expected, statistics.min, side="left")
                if first == np.searchsorted(expected, statistics.max, side="right"):
                    continue
            chosen.append(group)
        return chosen

    def codes(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Read the codes of sorted `rows`, float32 [n, n_styles, 512]."""
        if self.plain is not None:
            return self._plain_codes(rows, self.plain)
        groups = np.searchsorted(self.group_starts, rows, side="right") - 1
        parts = []
        for group in np.unique(groups):
            column = self.column("w_plus", [int(group)])
            inside = rows[groups == group] - self.group_starts[group]
            parts.append(codes_of(column.take(pa.array(inside)), self.uri).astype(np.float32))
        return np.concatenate(parts)

    def batches(self, rows: int = _SPOOL_ROWS) -> Iterator[NDArray[Any]]:
        """Yield all codes in blocks of `rows` rows, [n, n_styles, 512] of their own type."""
        with _reading(self.uri), self.store.open(self.name) as file:
            parquet = pq.ParquetFile(file, metadata=self.footer, pre_buffer=False)
            for batch in parquet.iter_batches(rows, columns=["w_plus"]):
                yield codes_of(pa.chunked_array([batch.column(0)]), self.uri)

    @cached_property
    def plain(self) -> list[_Chunk] | None:
        """Places of the plain codes of each row group; None if they are not stored so."""
        if self.metadata.get(CODE_PAGES) != "single" or not self.rows:
            return None
        try:
            chunks = [self._chunk(group) for group in range(self.footer.num_row_groups)]
        except LookupError:
            return None
        first = next(self.batches(1)).tobytes()
        return chunks if self._ranges([chunks[0].start], self._code_size) == [first] else None

    def _chunk(self, group: int) -> _Chunk:
        """Return the place of a row group's codes; `LookupError` if they are not plain."""
        metadata = self.footer.row_group(group)
        column = metadata.column(self._leaves[CODE_PATH])
        is_plain = set(column.encodings) <= {"PLAIN", "RLE"} and not column.has_dictionary_page
        size = metadata.num_rows * self._code_size
        if column.compression != "UNCOMPRESSED" or not is_plain:
            raise LookupError(CODE_PATH)
        end = column.data_page_offset + column.total_compressed_size
        if column.total_compressed_size < size:
            raise LookupError(CODE_PATH)
        return _Chunk(end - size, metadata.num_rows)

    def _plain_codes(
        self, rows: NDArray[np.int64], chunks: Sequence[_Chunk]
    ) -> NDArray[np.float32]:
        groups = np.searchsorted(self.group_starts, rows, side="right") - 1
        size = self._code_size
        starts = [
            chunks[group].start + int(row - self.group_starts[group]) * size
            for row, group in zip(rows, groups, strict=True)
        ]
        stored = np.frombuffer(b"".join(self._ranges(starts, size)), self._number)
        return stored.reshape(len(rows), -1, STYLE_DIM).astype(np.float32)

    def _ranges(self, starts: Sequence[int], size: int) -> list[bytes]:
        """Read `size` bytes from each of `starts` on."""
        if is_local(self.store.root):
            with (
                storage_errors(f"read '{self.uri}'"),
                Path(self.store.path(self.name)).open("rb", buffering=0) as file,
            ):
                return [os.pread(file.fileno(), size, start) for start in starts]
        with ThreadPoolExecutor(_THREADS) as pool:
            return list(
                pool.map(lambda start: self.store.get(self.name, start, start + size), starts)
            )

    @cached_property
    def _leaves(self) -> dict[str, int]:
        """Numbers of the leaf columns by path."""
        schema = self.footer.schema
        return {schema.column(index).path: index for index in range(len(schema))}

    @cached_property
    def _number(self) -> np.dtype[Any]:
        return _NUMBER[self.footer.schema.column(self._leaves[CODE_PATH]).physical_type]

    @cached_property
    def _code_size(self) -> int:
        """Bytes of one code."""
        metadata = self.footer.row_group(0)
        numbers = metadata.column(self._leaves[CODE_PATH]).num_values
        return int(numbers // metadata.num_rows) * self._number.itemsize


class ParquetCodes:
    """Codes of a folder of Parquet files with the columns `image_id` and `w_plus`, by image id."""

    def __init__(self, uri: str) -> None:
        """Read the footers. Raises `InputError` if `uri` has no such files."""
        root = canonical_uri(uri)
        store = Store(root)
        names = [name for name in store.names() if name.endswith(".parquet")]
        if not names:
            raise InputError(f"'{root}' has no Parquet files")
        self.uri = root
        with ThreadPoolExecutor(_THREADS) as pool:
            self.files = list(pool.map(lambda name: CodeFile(store, name), names))
        for file in self.files:
            if "image_id" not in file.schema.names:
                raise InputError(f"'{file.uri}' has no column image_id")

    def __len__(self) -> int:
        return sum(file.rows for file in self.files)

    def w_plus(self, ids: Sequence[str]) -> NDArray[np.float32]:
        """Return the codes of `ids` in their order, float32 [n, n_styles, 512].

        Reads the ids of the row groups whose statistics allow one of them, and the codes. Raises
        `UnknownImageError`, a `KeyError`, naming ids that the files do not hold.
        """
        if isinstance(ids, str):
            raise RequestError(f"w_plus takes a list of image ids, not a string: [{ids!r}]")
        requested = pa.array(sorted(set(ids)), pa.string())
        with ThreadPoolExecutor(_THREADS) as pool:
            read = list(pool.map(lambda file: _codes_in(file, requested), self.files))
        codes = dict(item for part in read for item in part.items())
        if missing := [image for image in ids if image not in codes]:
            raise UnknownImageError.of(f"'{self.uri}'", missing)
        if not len(ids):
            return np.empty((0, 0, STYLE_DIM), np.float32)
        return np.stack([codes[image] for image in ids])


def _codes_in(file: CodeFile, requested: pa.Array) -> dict[str, NDArray[np.float32]]:
    groups = file.groups_with(requested.to_pylist())
    if not groups:
        return {}
    ids = file.column("image_id", groups)
    starts = file.group_starts
    rows = np.concatenate([np.arange(starts[group], starts[group + 1]) for group in groups])
    found = np.flatnonzero(pc.is_in(ids, value_set=requested).to_numpy())
    if not len(found):
        return {}
    codes = file.codes(rows[found])
    return dict(zip(ids.take(pa.array(found)).to_pylist(), codes, strict=True))


@contextmanager
def _reading(uri: str) -> Iterator[None]:
    """Turn errors of Arrow into an `InputError`."""
    try:
        yield
    except _DAMAGE as error:
        raise InputError(f"'{uri}' is damaged: {one_line(error)}") from error


def codes_of(column: pa.ChunkedArray, source: str) -> NDArray[Any]:
    """Return a column of codes, in any form of nested lists, as [n, n_styles, 512] of its type.

    Raises `InputError` for nulls, other numbers than floats, and codes of several lengths.
    """
    chunk = pa.concat_arrays(column.chunks) if column.num_chunks != 1 else column.chunk(0)
    rows = len(chunk)
    while _is_list(chunk.type):
        if chunk.null_count:
            raise InputError(f"'{source}' has a null in the column w_plus")
        inner = chunk.flatten()
        lengths = np.unique(_lengths(chunk))
        if len(lengths) > 1:
            raise InputError(
                f"'{source}' has lists of {lengths[0]} and of {lengths[-1]} values in the column "
                "w_plus, but all codes must have one shape"
            )
        chunk = inner
    if not pa.types.is_floating(chunk.type) or chunk.null_count:
        what = "a null" if chunk.null_count else f"values of type {chunk.type}, expected floats,"
        raise InputError(f"'{source}' has {what} in the column w_plus")
    numbers: NDArray[Any] = chunk.to_numpy(zero_copy_only=False)
    if len(numbers) % (max(1, rows) * STYLE_DIM) or (rows and not len(numbers)):
        raise InputError(
            f"'{source}' has {len(numbers) // max(1, rows)} numbers per code in the column w_plus, "
            f"expected n_styles × {STYLE_DIM}"
        )
    return numbers.reshape(rows, -1, STYLE_DIM) if rows else numbers.reshape(0, 1, STYLE_DIM)


def _is_list(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def _lengths(lists: pa.Array) -> NDArray[np.int64]:
    if pa.types.is_fixed_size_list(lists.type):
        return np.array([lists.type.list_size], np.int64)
    return np.asarray(lists.value_lengths(), np.int64)
