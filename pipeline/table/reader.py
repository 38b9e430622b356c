"""Reading a table: SQL, codes by id, and the check of its promises."""

from __future__ import annotations

import re
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import RequestError, TableError, printable
from pipeline.storage import Store, one_line
from pipeline.table.parts import LATENTS, REJECTS, parse_part_name
from pipeline.table.queries import TableFiles, connect, create_view
from pipeline.table.runs import read_runs, runs_table, seconds_per_face
from pipeline.table.schema import STYLE_DIM, rejects_schema
from pipeline.table.shard_records import ShardRecord, manifest_ids, read_shard_record
from pipeline.table.spec import TableSpec, read_spec
from pipeline.table.statements import QUERY_ERRORS, check_reads
from pipeline.table.verify import verify_table

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped]

    from pipeline.engine.reading import LatentsDataset

_Form = TypeVar("_Form")
_THREADS = 8
# What Arrow and pandas raise for a value without a form in Python, by its type and its unit.
_NO_FORM = (ValueError, OverflowError, NotImplementedError, pa.ArrowException)
_SHARDS = pa.schema(
    [
        *((name, pa.string()) for name in ("shard", "uri", "kind", "etag")),
        *((name, pa.int64()) for name in ("size", "samples", "faces", "rejects", "part_size")),
        ("parts", pa.int64()),
    ]
)


class UnknownImageError(RequestError, KeyError):
    """An image id that the table does not hold."""

    # KeyError would show the text in quotes.
    __str__ = RequestError.__str__


class Table:
    """A table of latents, as it stands when it is first queried; open it again to see more.

    Works while a job writes to it: every part file that is there is whole.
    """

    def __init__(self, uri: str) -> None:
        """Raises `TableError` naming the URI if there is no table."""
        self.store = Store(uri)
        self.spec: TableSpec = read_spec(self.store)

    def __repr__(self) -> str:
        return f"Table({self.store.root!r})"

    def sql(self, query: str) -> pd.DataFrame:
        """The rows that a DuckDB `query` over the views `latents`, `rejects`, `shards`
        and `runs` gives.

        Only the columns and row groups that it needs are read. `w_plus` comes as FLOAT[][], in
        the frame as an array of `n_styles` arrays of 512; nulls inside lists come as NaN.
        Raises `RequestError` with DuckDB's reason if the query is wrong, or reads or writes
        anything but the table, and for values that pandas has no form for (`arrow` gives them).
        """
        rows = self.arrow(query)
        return as_python(rows, rows.to_pandas)

    def arrow(self, query: str) -> pa.Table:
        """What `sql` gives, as an Arrow table."""
        connection, files = self._database
        if re.search(r"\bshards\b", query, re.IGNORECASE):
            _ = self._shards_view
        if re.search(r"\bruns\b", query, re.IGNORECASE):
            _ = self._runs_view
        try:
            check_reads(query)
            relation = connection.sql(query)
            if relation is None:
                raise RequestError("the query failed: it gives no rows")
            return relation.to_arrow_table()
        except QUERY_ERRORS as error:
            files.raise_failure()
            raise RequestError(f"the query failed: {one_line(error)}") from error

    def batches(self, query: str, rows: int) -> Iterator[pa.RecordBatch]:
        """What `arrow` gives, `rows` rows at a time, for more than memory holds."""
        database, files = self._database
        with database.cursor() as connection:
            try:
                check_reads(query)
                relation = connection.sql(query)
                if relation is None:
                    raise RequestError("the query failed: it gives no rows")
                yield from relation.to_arrow_reader(rows)
            except QUERY_ERRORS as error:
                files.raise_failure()
                raise RequestError(f"the query failed: {one_line(error)}") from error

    def w_plus(self, ids: Sequence[str]) -> np.ndarray:
        """The codes of `ids` in their order: float32 [n, n_styles, 512].

        Reads the ids of the shards in question and the row groups that hold the codes. Raises
        `UnknownImageError`, a `KeyError`, naming ids that the table does not hold.
        """
        if isinstance(ids, str):
            raise RequestError(f"w_plus takes a list of image ids, not one as text: [{ids!r}]")
        found: dict[str, np.ndarray] = {}
        names = self._files_of({image.split("/", 1)[0] for image in ids})
        wanted = set(ids)
        with ThreadPoolExecutor(_THREADS) as pool:
            for some in pool.map(lambda name: self.codes_in(name, wanted), names):
                found |= some
        missing = [image for image in ids if image not in found]
        if missing:
            listed = ", ".join(f"'{image}'" for image in missing[:5])
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            raise UnknownImageError(f"the table '{self.store.root}' has no {listed}{more}")
        codes = np.array([found[image] for image in ids], dtype=np.float32)
        return codes.reshape(len(ids), *self._code_shape)

    def to_ray(self, columns: Sequence[str] | None = None) -> LatentsDataset:
        """Return the latents as a Ray dataset, in no order; `w_plus` is a tensor [n_styles, 512].

        `iter_torch_batches` gives [n, n_styles, 512]. Only the `columns` are read, all by default.
        Starts Ray where none runs. Raises `RequestError` for a column that the table does not have.
        """
        # The one import that goes up: the engine alone knows Ray, and users know the table.
        from pipeline.engine.reading import read_latents

        names = [name for name in self.store.names(f"{LATENTS}/") if parse_part_name(name)]
        return read_latents(self.store, names, self.spec.columns.latents_schema(), columns)

    def shards(self) -> list[ShardRecord]:
        """The manifests of all committed shards, by id."""
        with ThreadPoolExecutor(_THREADS) as pool:
            ids = manifest_ids(self.store)
            return list(pool.map(lambda shard: read_shard_record(self.store, shard), ids))

    def runs(self) -> list[dict[str, Any]]:
        """The accounts of all runs that worked on the table, by their start."""
        return read_runs(self.store)

    def seconds_per_face(self) -> float | None:
        """Seconds of the method for a face, without metrics, over all runs; None if unknown."""
        return seconds_per_face(self.runs())

    def verify(self, *, checksums: bool = True) -> dict[str, int]:
        """The table's counts, after checking every promise that it makes; see `verify_table`."""
        return verify_table(self.store, self.spec, checksums=checksums)

    @property
    def bytes_read(self) -> int:
        """Bytes that queries have fetched so far; of a local disk they are not counted."""
        return self._database[1].bytes_read

    @property
    def _code_shape(self) -> tuple[int, int]:
        return self.spec.columns.n_styles, STYLE_DIM

    @cached_property
    def _database(self) -> tuple[duckdb.DuckDBPyConnection, TableFiles]:
        connection, files = connect(self.store)
        weakref.finalize(self, connection.close)
        # DuckDB takes no float16 out of Arrow; out of Parquet it makes it FLOAT.
        latents = replace(self.spec.columns, w_plus_dtype="float32").latents_schema()
        for kind, schema in ((LATENTS, latents), (REJECTS, rejects_schema())):
            names = [name for name in self.store.names(f"{kind}/") if parse_part_name(name)]
            create_view(connection, kind, files, names, schema)
        return connection, files

    @cached_property
    def _shards_view(self) -> None:
        """Registered when a query names it, as it takes one read a shard."""
        rows = [{**asdict(shard), "parts": len(shard.parts)} for shard in self.shards()]
        shards = pa.Table.from_pylist(
            [{name: row[name] for name in _SHARDS.names} for row in rows], schema=_SHARDS
        )
        self._database[0].register("shards", shards)

    @cached_property
    def _runs_view(self) -> None:
        """Registered when a query names it, as it takes one read a run."""
        self._database[0].register("runs", runs_table(self.runs()))

    def _files_of(self, shards: set[str]) -> list[str]:
        names: dict[str, list[str]] = defaultdict(list)
        for shard in shards:
            for name in self.store.names(f"{LATENTS}/{shard}-"):
                parsed = parse_part_name(name)
                if parsed:
                    names[parsed[0]].append(name)
        return [name for shard in sorted(shards) for name in names[shard]]

    def codes_in(self, name: str, wanted: set[str]) -> dict[str, np.ndarray]:
        """The codes, float32 [n_styles, 512], of those `wanted` that the latents file has."""
        codes: dict[str, np.ndarray] = {}
        try:
            with self.store.open(name) as file:
                parquet = pq.ParquetFile(file)
                for group in range(parquet.num_row_groups):
                    ids = parquet.read_row_group(group, ["image_id"])["image_id"].to_pylist()
                    rows = [row for row, image in enumerate(ids) if image in wanted]
                    if rows:
                        column = parquet.read_row_group(group, ["w_plus"])["w_plus"].take(rows)
                        values = as_array(column).reshape(-1, *self._code_shape)
                        codes |= dict(zip([ids[row] for row in rows], values, strict=True))
        # Arrow also raises Python's own errors; a file of other columns has no such shape.
        except (pa.ArrowException, ValueError, LookupError, AttributeError) as error:
            uri = self.store.uri(name)
            raise TableError(f"'{uri}' is damaged: {one_line(error)}") from error
        return codes


def open_table(uri: str) -> Table:
    """The table at a path or fsspec URI; `TableError` naming it if there is none."""
    return Table(uri)


def as_python(rows: pa.Table, convert: Callable[[], _Form]) -> _Form:
    """What `convert` makes of a query's rows or of a part of them.

    Raises `RequestError` naming the columns that hold a value which Python has none for: its dates
    go from year 1 to 9999, those of Arrow further and to infinity.
    """
    try:
        return convert()
    except _NO_FORM as error:
        held = ", ".join(f"'{printable(name)}'" for name in _odd_columns(rows))
        raise RequestError(
            f"the query failed: column {held} has a value that Python has no form for "
            f"({one_line(error)}): ask for it as text, by CAST(... AS VARCHAR)"
        ) from error


def _odd_columns(rows: pa.Table) -> Iterator[str]:
    """The names of the columns of which Python has not every value."""
    for name, column in zip(rows.column_names, rows.columns, strict=True):
        try:
            column.to_pylist()
            column.to_pandas()
        except _NO_FORM:
            yield name


def as_array(column: pa.ChunkedArray) -> np.ndarray:
    """A `w_plus` column as float32 [n, n_styles, 512]."""
    chunk = column.combine_chunks()
    chunk = chunk.chunk(0) if isinstance(chunk, pa.ChunkedArray) else chunk
    rows = chunk.type.list_size
    numbers = chunk.flatten().flatten().to_numpy(zero_copy_only=False)
    return np.asarray(numbers, np.float32).reshape(-1, rows, STYLE_DIM)


class StepCodes(NamedTuple):
    """The codes of all steps of n faces, one face's after the other's."""

    codes: NDArray[np.float32]  # [sum of steps, n_styles, 512]
    offsets: NDArray[np.int64]  # [n + 1]; face i has the codes offsets[i] to offsets[i + 1]


def codes_of(column: pa.ListArray, n_styles: int) -> NDArray[np.float32]:
    """A `w_plus` column, lists of lists of numbers, as [n, n_styles, 512]."""
    numbers = column.flatten().flatten().to_numpy(zero_copy_only=False)
    return np.asarray(numbers, np.float32).reshape(-1, n_styles, STYLE_DIM)


def step_codes_of(column: pa.ListArray, n_styles: int) -> StepCodes:
    """A `w_plus_per_step` column, one level of lists deeper."""
    lengths = column.value_lengths().fill_null(0).to_numpy()
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return StepCodes(codes_of(column.flatten(), n_styles), offsets)
