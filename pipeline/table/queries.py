"""DuckDB over the part files of a table, wherever they lie.

DuckDB's own S3 support is an extension that has to be downloaded and has its own credentials. The
files of a table that is not on a disk are shown to it as a small file system over the table's
store, so that it reads with the same client as everything else, and only the byte ranges that the
query's columns and row groups need.

A query is text from outside: it reads the table's files and nothing else, and writes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, cast

import duckdb
import pyarrow as pa
from fsspec.spec import AbstractFileSystem

from pipeline.errors import RequestError, TableError
from pipeline.storage import Store, is_local, one_line

_PROTOCOL = "restyle-table"
# Nothing is to be downloaded in the middle of a query, and a mistyped table name is an error, not
# a variable of the Python code around it.
_SETTINGS: dict[str, Any] = {
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "python_enable_replacements": False,
}
# In DuckDB's tree of a query, whose texts have their quotes escaped: it is none, or it writes.
_NO_READ = re.compile(r'^\{"error":true|"type":"\w+_QUERY_NODE"')


class TableFiles(AbstractFileSystem):  # type: ignore[misc]
    """The objects of a store as DuckDB wants files; `bytes_read` counts what it fetched."""

    protocol = _PROTOCOL
    cachable = False

    def __init__(self, store: Store) -> None:
        super().__init__()
        self.store = store
        self.bytes_read = 0
        self._infos: dict[str, dict[str, Any]] = {}
        self._modified: dict[str, Any] = {}

    def _inside(self, path: str) -> str:
        return self.store.path(str(self._strip_protocol(path)))

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Size and times of a file; asked for once, as a part file never changes its meaning."""
        if path not in self._infos:
            self._infos[path] = {**self.store.fs.info(self._inside(path)), "name": path}
        return self._infos[path]

    def modified(self, path: str) -> Any:
        """When the file was written, by which DuckDB knows its cached blocks; asked for once."""
        if path not in self._modified:
            self._modified[path] = self.store.fs.modified(self._inside(path))
        return self._modified[path]

    def glob(self, path: str, **_: Any) -> list[str]:
        """The path itself: views name their files one by one."""
        return [path]

    def exists(self, path: str, **_: Any) -> bool:
        """True: views name only files that were listed."""
        return bool(path)

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        if mode != "rb":
            raise PermissionError(f"the table is only read, not opened with mode {mode!r}")
        file = self.store.fs.open(self._inside(path), mode, cache_type="none")
        read = file.read

        def counted(length: int = -1) -> bytes:
            content = cast(bytes, read(length))
            self.bytes_read += len(content)
            return content

        file.read = counted
        return file


def connect(store: Store) -> tuple[duckdb.DuckDBPyConnection, TableFiles]:
    """A connection of its own that can read the store's files, and the file system it reads by.

    It reads nothing else, on the disk or on the web, loads no extension, and stays like that.
    """
    connection = duckdb.connect(config=_SETTINGS)
    # A query of seconds would draw a bar into the caller's output.
    connection.execute("SET enable_progress_bar = false")
    files = TableFiles(store)
    connection.register_filesystem(files)
    # A folder of a disk also as the pattern that names it, which DuckDB compares as it stands.
    folders = {_path(store, "")} | ({f"{store.path()}/"} if is_local(store.root) else set())
    allowed = ", ".join(map(_quoted, sorted(folders)))
    connection.execute(f"SET allowed_directories = [{allowed}]")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection, files


def check_reads(connection: duckdb.DuckDBPyConnection, query: str) -> None:
    """Raise `RequestError` for a query that does more than read.

    The lock of `connect` leaves the table's own folder, into which a COPY could write: as a
    statement, or as the body of a WITH, which makes it a SELECT to DuckDB. Raises DuckDB's error
    for what is no SQL.
    """
    statements = duckdb.extract_statements(query)
    ((tree,),) = connection.execute("SELECT json_serialize_sql(?::VARCHAR)", [query]).fetchall()
    if _NO_READ.search(tree):
        raise RequestError("the query failed: only queries that read are run (SELECT, FROM, ...)")
    if len(statements) > 1:
        raise RequestError("the query failed: it is several, and only one gives its rows")


def create_view(
    connection: duckdb.DuckDBPyConnection,
    view: str,
    store: Store,
    names: Sequence[str],
    schema: pa.Schema,
) -> None:
    """A view of the Parquet files `names`; of none, an empty view with the columns of `schema`.

    `TableError` if the first of them, which gives the columns, cannot be read.
    """
    if names:
        paths = ", ".join(_quoted(_path(store, name)) for name in names)
        # A folder above the table may be called `steps=10`, which is no column of it.
        source = f"read_parquet([{paths}], hive_partitioning = false)"
    else:
        source = f"{view}_without_rows"
        connection.register(source, schema.empty_table())
    try:
        connection.execute(f"CREATE OR REPLACE VIEW {view} AS SELECT * FROM {source}")
    except duckdb.Error as error:
        raise TableError(
            f"'{store.root}' has a damaged file among its {view}: {one_line(error)}"
        ) from error


def _path(store: Store, name: str) -> str:
    if not is_local(store.root):
        return f"{_PROTOCOL}://{name}"
    # DuckDB takes every path for a pattern; a class of one character stands for itself.
    return re.sub(r"([*?\[])", r"[\1]", f"{store.path()}/{name}")


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
