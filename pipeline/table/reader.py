"""Read a table: SQL, codes by id, records of shards and runs, and verification."""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any, Self, TypeVar

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import RequestError, printable
from pipeline.storage import Store, is_local, one_line
from pipeline.table.frames import arrow_frames
from pipeline.table.parts import LATENTS, REJECTS, damage_reported, parse_part_name
from pipeline.table.queries import TableFiles, connect, create_view
from pipeline.table.runs import read_runs, runs_table
from pipeline.table.schema import STYLE_DIM, codes_of, rejects_schema
from pipeline.table.shard_records import ShardRecord, manifest_ids, read_shard_record
from pipeline.table.spec import TableSpec, read_spec
from pipeline.table.statements import check_reads
from pipeline.table.verify import verify_table

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped]

    from pipeline.choices import SearchBy
    from pipeline.engine.reading import LatentsDataset

_Form = TypeVar("_Form")
_THREADS = 8
# Raised by Arrow and pandas, depending on type and unit, for a value that Python cannot represent.
_CONVERSION_ERRORS = (ValueError, OverflowError, NotImplementedError, pa.ArrowException)
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

    @classmethod
    def of(cls, where: str, missing: Sequence[str]) -> Self:
        """Return the error for ids that `where` does not hold, of which it names five."""
        listed = ", ".join(f"'{image}'" for image in missing[:5])
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        return cls(f"{where} has no {listed}{more}")


class Table:
    """A table of latents, with the part files of the first query; open it again to see later ones.

    May be read while a job writes to it, because every stored part file is complete.
    """

    def __init__(self, uri: str) -> None:
        """Open the table at a path or fsspec URI; `InputError` if it is not a table."""
        self.store = Store(uri)
        self.spec: TableSpec = read_spec(self.store)

    def __repr__(self) -> str:
        return f"Table({self.store.root!r})"

    def sql(self, query: str, **frames: Any) -> pd.DataFrame:
        """Run a DuckDB `query` over the views `latents`, `rejects`, `shards` and `runs`.

        `frames` are pandas, polars or Arrow tables, further views under the names of the
        arguments. Reads only the columns and row groups that the query needs. `w_plus` has the
        type FLOAT[][], in the frame an array of `n_styles` arrays of 512; nulls inside lists
        become NaN.
        Raises `RequestError` with DuckDB's reason if the query is invalid, or accesses anything but
        the table and `frames`, or returns a value that pandas cannot represent (`arrow` returns
        such values).
        """
        rows = self.arrow(query, **frames)
        return as_python(rows, rows.to_pandas)

    def arrow(self, query: str, **frames: Any) -> pa.Table:
        """Return the result of `sql` as an Arrow table."""
        with self._run(query, frames) as relation:
            return relation.to_arrow_table()

    def batches(self, query: str, rows: int, **frames: Any) -> Iterator[pa.RecordBatch]:
        """Yield the result of `arrow` in batches of `rows` rows, for results larger than memory."""
        with self._run(query, frames) as relation:
            yield from relation.to_arrow_reader(rows)

    @contextmanager
    def _run(self, query: str, frames: Mapping[str, Any]) -> Iterator[duckdb.DuckDBPyRelation]:
        """Check a query and run it on a connection of its own, on which the frames are views."""
        tables = arrow_frames(frames)
        database, files = self._database
        if re.search(r"\bshards\b", query, re.IGNORECASE):
            tables["shards"] = self._shards_view
        if re.search(r"\bruns\b", query, re.IGNORECASE):
            tables["runs"] = self._runs_view
        with database.cursor() as connection, files.failure_named("the query"):
            check_reads(query, frames)
            for name, table in tables.items():
                connection.register(name, table)
            relation = connection.sql(query)
            if relation is None:
                raise RequestError("the query failed: it returns no rows")
            yield relation

    def w_plus(self, ids: Sequence[str]) -> np.ndarray:
        """Return the codes of `ids` in their order: float32 [n, n_styles, 512].

        Reads the ids of the shards in question and the row groups that hold the codes. Raises
        `UnknownImageError`, a `KeyError`, naming ids that the table does not hold.
        """
        if isinstance(ids, str):
            raise RequestError(f"w_plus takes a list of image ids, not a string: [{ids!r}]")
        codes_by_id: dict[str, np.ndarray] = {}
        names = self._files_of({image.split("/", 1)[0] for image in ids})
        requested = set(ids)
        with ThreadPoolExecutor(_THREADS) as pool:
            for codes_in_file in pool.map(lambda name: self.codes_in(name, requested), names):
                codes_by_id |= codes_in_file
        if missing := [image for image in ids if image not in codes_by_id]:
            raise UnknownImageError.of(f"the table '{self.store.root}'", missing)
        codes = np.array([codes_by_id[image] for image in ids], dtype=np.float32)
        return codes.reshape(len(ids), *self._code_shape)

    def to_ray(self, columns: Sequence[str] | None = None) -> LatentsDataset:
        """Return the latents as a Ray dataset, in no order; `w_plus` is a tensor [n_styles, 512].

        `iter_torch_batches` gives [n, n_styles, 512]. Reads only `columns`, by default all. Starts
        Ray if it is not running. Raises `RequestError` for a column that the table does not have.
        """
        # The only import of the engine outside it: only the engine may import Ray.
        from pipeline.engine.reading import read_latents

        names = [name for name in self.store.names(f"{LATENTS}/") if parse_part_name(name)]
        return read_latents(self.store, names, self.spec.columns.latents_schema(), columns)

    def nearest(
        self,
        like: str | Sequence[str] | np.ndarray,
        k: int = 10,
        *,
        by: SearchBy | None = None,
        where: str = "",
    ) -> pd.DataFrame:
        """Return the `k` faces most similar to each of `like`: query, rank, image_id, similarity.

        `like` are image ids of this table, identity vectors [n, d], or codes [n, n_styles, 512]
        with `by="w_plus"`; arrays are named by their row. `by` is `identity` if the table has that
        column, else `w_plus`. `where` is an SQL condition on the faces that are compared. A face is
        no neighbour of itself. Exact; imports PyTorch. Raises `UnknownImageError` for an id that
        the table does not hold, and `RequestError` for a face without an identity.
        """
        # Above this package; PyTorch is slow to import.
        from pipeline.search.neighbours import nearest_frame
        from pipeline.table.selection import Selection

        return nearest_frame(Selection(self, where), like, k, by)

    def shards(self) -> list[ShardRecord]:
        """Read the manifests of all committed shards, sorted by id."""
        with ThreadPoolExecutor(_THREADS) as pool:
            ids = manifest_ids(self.store)
            return list(pool.map(lambda shard: read_shard_record(self.store, shard), ids))

    def runs(self) -> list[dict[str, Any]]:
        """Read the records of all runs on the table, sorted by their start."""
        return read_runs(self.store)

    def seconds_per_face(self) -> float | None:
        """Return the seconds of the method per face, without metrics, over all runs.

        Failed runs count with the work that they did. None if no run has recorded its seconds.
        """
        timed = [run for run in self.runs() if run.get("inversion_seconds") and run.get("faces")]
        faces = sum(int(run["faces"]) for run in timed)
        return sum(float(run["inversion_seconds"]) for run in timed) / faces if faces else None

    def verify(self, *, checksums: bool = True) -> dict[str, int]:
        """Check that the table is consistent and return its counts; see `verify_table`."""
        return verify_table(self.store, self.spec, checksums=checksums)

    @property
    def bytes_read(self) -> int:
        """Bytes that queries have fetched so far; reads from a local disk are not counted."""
        return self._database[1].bytes_read

    @property
    def _code_shape(self) -> tuple[int, int]:
        return self.spec.columns.n_styles, STYLE_DIM

    @cached_property
    def _database(self) -> tuple[duckdb.DuckDBPyConnection, TableFiles]:
        connection, files = connect(self.store)
        weakref.finalize(self, connection.close)
        # DuckDB reads float16 as FLOAT from Parquet, but cannot read it from Arrow.
        latents = replace(self.spec.columns, w_plus_dtype="float32").latents_schema()
        for kind, schema in ((LATENTS, latents), (REJECTS, rejects_schema())):
            names = [name for name in self.store.names(f"{kind}/") if parse_part_name(name)]
            create_view(connection, kind, files, names, schema)
        return connection, files

    @cached_property
    def _shards_view(self) -> pa.Table:
        """Return the rows of the view `shards`, for queries that name it: one read per shard."""
        rows = [
            shard.to_row() | {"kind": shard.kind, "part_size": shard.part_size}
            for shard in self.shards()
        ]
        return pa.Table.from_pylist(rows, schema=_SHARDS)

    @cached_property
    def _runs_view(self) -> pa.Table:
        """Return the rows of the view `runs`, for queries that name it: one read per run."""
        return runs_table(self.runs())

    def _files_of(self, shards: set[str]) -> list[str]:
        """Return the latents files of `shards`; a disk is listed once for all of them."""
        on_disk = is_local(self.store.root)
        starts = [f"{LATENTS}/"] if on_disk else [f"{LATENTS}/{shard}-" for shard in shards]
        listed = chain.from_iterable(map(self.store.each_name, starts))
        parsed = {name: part for name in listed if (part := parse_part_name(name))}
        return sorted(name for name, (shard, _) in parsed.items() if shard in shards)

    def codes_in(self, name: str, requested: set[str]) -> dict[str, np.ndarray]:
        """Return those codes that a latents file has, float32 [n_styles, 512] by image id."""
        codes: dict[str, np.ndarray] = {}
        with self.store.open(name) as file, damage_reported(self.store.uri(name)):
            parquet = pq.ParquetFile(file)
            for group in range(parquet.num_row_groups):
                ids = parquet.read_row_group(group, ["image_id"])["image_id"].to_pylist()
                rows = [row for row, image in enumerate(ids) if image in requested]
                if rows:
                    column = parquet.read_row_group(group, ["w_plus"])["w_plus"].take(rows)
                    values = codes_of(column).reshape(-1, *self._code_shape)
                    codes |= dict(zip([ids[row] for row in rows], values, strict=True))
        return codes


def open_table(uri: str) -> Table:
    """Open the table at a path or fsspec URI; `InputError` if it is not a table."""
    return Table(uri)


def as_python(rows: pa.Table, convert: Callable[[], _Form]) -> _Form:
    """Call `convert`, which turns a query's `rows`, or some of them, into Python or pandas values.

    Raises `RequestError` naming the columns with values that Python cannot represent, such as
    dates outside the years 1 to 9999, or infinite ones.
    """
    try:
        return convert()
    except _CONVERSION_ERRORS as error:
        columns = ", ".join(f"'{printable(name)}'" for name in _unconvertible_columns(rows))
        raise RequestError(
            f"the query failed: column {columns} has a value that Python cannot represent "
            f"({one_line(error)}): select it as text, with CAST(... AS VARCHAR)"
        ) from error


def _unconvertible_columns(rows: pa.Table) -> Iterator[str]:
    """Yield the names of the columns that do not convert to Python or pandas."""
    for name, column in zip(rows.column_names, rows.columns, strict=True):
        try:
            column.to_pylist()
            column.to_pandas()
        except _CONVERSION_ERRORS:
            yield name
