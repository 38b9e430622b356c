"""DuckDB over the part files of a table, on any storage.

DuckDB reads the files through a small file system over the table's store. DuckDB's own S3 support
is an extension that must be downloaded and takes separate credentials. Here the pipeline's own
client reads, and only the byte ranges of the columns and row groups that the query needs.

A query is untrusted text. Two safeguards keep it to reading the table, each sufficient alone:

* `statements` accepts a parsed statement only if it is one SELECT over the table's views and
  functions without side effects;
* the connection can open only the files of this file system, only for reading, and no name outside
  the table.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
from fsspec.spec import AbstractFileSystem

from pipeline.errors import RequestError, StorageError, TableError
from pipeline.storage import Store, is_local, one_line
from pipeline.table.statements import QUERY_ERRORS

_PROTOCOL = "restyle-table"
# A query downloads nothing, and a mistyped table name is an error: by default DuckDB would look for
# a Python variable of that name.
_SETTINGS: dict[str, Any] = {
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "allow_community_extensions": False,
    "allow_persistent_secrets": False,
    "python_enable_replacements": False,
}


class TableFiles(AbstractFileSystem):  # type: ignore[misc]
    """Read-only file system for DuckDB with the files that were passed to `add`.

    `bytes_read` counts fetched bytes; reads from a disk are not counted. Any other name raises
    `FileNotFoundError`, and any mode but reading `PermissionError`. Other methods of fsspec are not
    implemented.
    """

    protocol = _PROTOCOL
    cachable = False

    def __init__(self, store: Store) -> None:
        super().__init__()
        self.store = store
        self.bytes_read = 0
        # DuckDB spills to this folder beyond its memory limit (80 % of the memory of the machine or
        # the container). Only this user can read it, and it is removed at the end.
        self.spill = Path(tempfile.mkdtemp(prefix="restyle-query-"))
        self._end = weakref.finalize(self, shutil.rmtree, self.spill, ignore_errors=True)
        self._on_disk = is_local(store.root)
        self._names: dict[str, str] = {}  # path in DuckDB -> name in the store
        self._states: dict[str, tuple[int, Any]] = {}
        self._failure: StorageError | None = None

    def raise_failure(self) -> None:
        """Raise the storage error that made a query fail, if there was one.

        DuckDB wraps it in an error of its own, as if the query or the file were wrong.
        """
        failure, self._failure = self._failure, None
        if failure:
            raise failure

    @contextmanager
    def failure_named(self, query: str) -> Iterator[None]:
        """Turn an error of DuckDB into a `RequestError`, or into the storage error behind it.

        `query` names what failed.
        """
        try:
            yield
        except QUERY_ERRORS as error:
            self.raise_failure()
            raise RequestError(f"{query} failed: {one_line(error)}") from error

    def add(self, name: str) -> str:
        """Make a file of the store readable; return its path in DuckDB."""
        path = f"{_PROTOCOL}://{name}"
        self._names[path] = name
        return path

    def open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        """Open a file for reading; `PermissionError` for any other mode."""
        if mode != "rb":
            raise PermissionError(f"files of the table can only be read, not opened as {mode!r}")
        name = self._name_of(path)
        if self._on_disk:
            return _DiskFile(self.store.path(name))
        return _RangedFile(partial(self._fetch, name), self.size(path))

    def size(self, path: str) -> int:
        """Return the size of a file in bytes."""
        return self._state(path)[0]

    def modified(self, path: str) -> Any:
        """Return the time of the last write, by which DuckDB checks its cached blocks."""
        return self._state(path)[1]

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Return name, type and size of a file."""
        return {"name": path, "type": "file", "size": self.size(path)}

    def glob(self, path: str, **_: Any) -> list[str]:
        """Return the path itself: views name each file, and names are no patterns."""
        return [path]

    def exists(self, path: str, **_: Any) -> bool:
        """Return whether the file was passed to `add`."""
        return path in self._names

    def close(self) -> None:
        """Remove the spill folder; close the connection first."""
        self._end()

    def _name_of(self, path: str) -> str:
        if path not in self._names:
            raise FileNotFoundError(f"{path!r} is not a file of the table's views")
        return self._names[path]

    def _state(self, path: str) -> tuple[int, Any]:
        """Return size and time of a file; looked up once, because part files never change."""
        if path not in self._states:
            name = self._name_of(path)
            with self._keep_failure():
                info = self.store.info(name)
            self._states[path] = info.size, datetime.fromtimestamp(info.modified, UTC)
        return self._states[path]

    def _fetch(self, name: str, start: int, end: int) -> bytes:
        with self._keep_failure():
            content = self.store.get(name, start, end)
        self.bytes_read += len(content)
        return content

    @contextmanager
    def _keep_failure(self) -> Iterator[None]:
        """Keep a `StorageError` for `raise_failure`."""
        try:
            yield
        except StorageError as error:
            self._failure = error
            raise


class _RangedFile:
    """File with a separate read position for each thread.

    DuckDB's threads share a file and treat seek and read as one step, but Python may switch threads
    between the two.
    """

    def __init__(self, fetch: Callable[[int, int], bytes], size: int) -> None:
        self._fetch, self._size = fetch, size
        self._position = threading.local()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to `offset` from the start, the current position or the end."""
        self._position.offset = offset + (0, self.tell(), self._size)[whence] if whence else offset
        return int(self._position.offset)

    def tell(self) -> int:
        """Return the position of this thread."""
        return int(getattr(self._position, "offset", 0))

    def read(self, length: int = -1) -> bytes:
        """Return up to `length` bytes from the position on; all the rest by default."""
        start = self.tell()
        end = self._size if length < 0 else min(self._size, start + length)
        content = self._fetch(start, end) if start < end else b""
        self._position.offset = start + len(content)
        return content

    def close(self) -> None:
        """Do nothing: the file holds no connection."""


class _DiskFile(_RangedFile):
    """File on a disk, read without fsspec's layers, which dominate the time of large scans."""

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)
        super().__init__(self._pread, os.fstat(self._descriptor).st_size)

    def __del__(self) -> None:
        """Close the file: DuckDB drops files without closing them when a query fails."""
        self.close()

    def _pread(self, start: int, end: int) -> bytes:
        return os.pread(self._descriptor, end - start, start)

    def close(self) -> None:
        """Close the descriptor."""
        descriptor, self._descriptor = getattr(self, "_descriptor", -1), -1
        if descriptor >= 0:
            os.close(descriptor)


def connect(store: Store) -> tuple[duckdb.DuckDBPyConnection, TableFiles]:
    """Return a new connection that can read files of the store, and the file system it reads with.

    The connection reads nothing else on the disk or on the web, writes only spill files into a
    private folder, and loads no extension. A query cannot change these settings.
    """
    connection = duckdb.connect(config=_SETTINGS)
    # DuckDB would print a progress bar for queries that take seconds.
    connection.execute("SET enable_progress_bar = false")
    files = TableFiles(store)
    connection.register_filesystem(files)
    connection.execute(f"SET temp_directory = {_quoted(str(files.spill))}")
    if is_local(store.root):  # the operating system caches files and reads ahead
        connection.execute("SET enable_external_file_cache = false")
        connection.execute("SET disable_parquet_prefetching = true")
    connection.execute(f"SET allowed_directories = ['{_PROTOCOL}://']")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection, files


def create_view(
    connection: duckdb.DuckDBPyConnection,
    view: str,
    files: TableFiles,
    names: Sequence[str],
    schema: pa.Schema,
) -> None:
    """Create a view of the Parquet files `names`; without files, an empty one with this `schema`.

    The first file defines the columns. Raises `TableError` if it is damaged, and `StorageError` if
    it cannot be read.
    """
    if names:
        paths = ", ".join(_quoted(files.add(name)) for name in names)
        # Without this option a parent folder named `steps=10` would become a column.
        source = f"read_parquet([{paths}], hive_partitioning = false)"
    else:
        # A table, which unlike a registered frame is visible to all cursors of the connection.
        source = f"{view}_without_rows"
        connection.register("empty_rows", schema.empty_table())
        connection.execute(f"CREATE OR REPLACE TABLE {source} AS FROM empty_rows")
        connection.unregister("empty_rows")
    try:
        connection.execute(f"CREATE OR REPLACE VIEW {view} AS SELECT * FROM {source}")
    except duckdb.Error as error:
        files.raise_failure()
        raise TableError(
            f"'{files.store.root}' has a damaged file among its {view}: {one_line(error)}"
        ) from error


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
