"""DuckDB over the part files of a table, wherever they lie.

The files are shown to DuckDB as a small file system over the table's store, on a disk as in a
bucket. DuckDB's own S3 support is an extension that has to be downloaded and has its own
credentials; here the same client reads as everywhere else, and only the byte ranges that the
query's columns and row groups need.

A query is text from outside. Two things keep it to reading the table, each alone enough:

* `statements` accepts a parsed statement only if it is one SELECT over the table's views and
  functions that compute;
* the connection reaches no file but those of this file system, which opens nothing for writing
  and no name outside the table.
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

from pipeline.errors import StorageError, TableError
from pipeline.storage import Store, is_local, one_line

_PROTOCOL = "restyle-table"
# Nothing is to be downloaded in the middle of a query, and a mistyped table name is an error, not
# a variable of the Python code around it.
_SETTINGS: dict[str, Any] = {
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "allow_community_extensions": False,
    "allow_persistent_secrets": False,
    "python_enable_replacements": False,
}


class TableFiles(AbstractFileSystem):  # type: ignore[misc]
    """The files of a store that views name, as DuckDB reads files; no other, and not to write.

    `bytes_read` counts what was fetched, of a disk nothing. Any other name is a
    `FileNotFoundError`, opening for anything but reading a `PermissionError`; fsspec's other calls
    have no implementation here.
    """

    protocol = _PROTOCOL
    cachable = False

    def __init__(self, store: Store) -> None:
        super().__init__()
        self.store = store
        self.bytes_read = 0
        # Where a query that needs more than DuckDB's memory limit (80 % of the machine's or the
        # container's memory) keeps what it sorts: readable by this user alone, removed at the end.
        self.spill = Path(tempfile.mkdtemp(prefix="restyle-query-"))
        self._end = weakref.finalize(self, shutil.rmtree, self.spill, ignore_errors=True)
        self._on_disk = is_local(store.root)
        self._names: dict[str, str] = {}  # what DuckDB calls a file -> its name in the store
        self._states: dict[str, tuple[int, Any]] = {}
        self._failure: StorageError | None = None

    def raise_failure(self) -> None:
        """Raise the error of the storage where one is the reason that a query failed.

        DuckDB gives its text in an error of its own, as if the query or the file were wrong.
        """
        failure, self._failure = self._failure, None
        if failure:
            raise failure

    def add(self, name: str) -> str:
        """Make a file of the store readable; what DuckDB calls it."""
        path = f"{_PROTOCOL}://{name}"
        self._names[path] = name
        return path

    def open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        """The file, for reading alone."""
        if mode != "rb":
            raise PermissionError(f"the table is only read, not opened with mode {mode!r}")
        name = self._name_of(path)
        if self._on_disk:
            return _DiskFile(self.store.path(name))
        return _RangedFile(partial(self._fetch, name), self.size(path))

    def size(self, path: str) -> int:
        """Bytes of a file."""
        return self._state(path)[0]

    def modified(self, path: str) -> Any:
        """When the file was written, by which DuckDB knows its cached blocks."""
        return self._state(path)[1]

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Name, type and size of a file."""
        return {"name": path, "type": "file", "size": self.size(path)}

    def glob(self, path: str, **_: Any) -> list[str]:
        """The path itself: views name their files one by one."""
        return [path]

    def exists(self, path: str, **_: Any) -> bool:
        """Whether a view names the file."""
        return path in self._names

    def close(self) -> None:
        """Remove what was spilled; the connection is closed by then."""
        self._end()

    def _name_of(self, path: str) -> str:
        if path not in self._names:
            raise FileNotFoundError(f"{path!r} is not a file of the table's views")
        return self._names[path]

    def _state(self, path: str) -> tuple[int, Any]:
        """Size and time; asked for once, as a part file never changes its meaning."""
        if path not in self._states:
            name = self._name_of(path)
            with self._noted():
                found = self.store.info(name)
            self._states[path] = found.size, datetime.fromtimestamp(found.modified, UTC)
        return self._states[path]

    def _fetch(self, name: str, start: int, end: int) -> bytes:
        with self._noted():
            content = self.store.get_range(name, start, end)
        self.bytes_read += len(content)
        return content

    @contextmanager
    def _noted(self) -> Iterator[None]:
        """Keep a failure of the storage for `raise_failure`."""
        try:
            yield
        except StorageError as error:
            self._failure = error
            raise


class _RangedFile:
    """A file in which every thread has a place of its own.

    DuckDB's threads share a file and take seeking and reading for one step, between which Python
    may go on with another thread.
    """

    def __init__(self, fetch: Callable[[int, int], bytes], size: int) -> None:
        self._fetch, self._size = fetch, size
        self._place = threading.local()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to `offset` from the start, the place, or the end."""
        self._place.offset = offset + (0, self.tell(), self._size)[whence] if whence else offset
        return int(self._place.offset)

    def tell(self) -> int:
        """The place of this thread."""
        return int(getattr(self._place, "offset", 0))

    def read(self, length: int = -1) -> bytes:
        """Bytes from the place on: `length` of them, or as many as there are."""
        start = self.tell()
        end = self._size if length < 0 else min(self._size, start + length)
        content = self._fetch(start, end) if start < end else b""
        self._place.offset = start + len(content)
        return content

    def close(self) -> None:
        """Nothing: no connection belongs to it."""


class _DiskFile(_RangedFile):
    """A file of a disk, without fsspec's layers: a scan of many files spends its time in them."""

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)
        super().__init__(self._pread, os.fstat(self._descriptor).st_size)

    def __del__(self) -> None:
        """Close it, as DuckDB drops a file without closing it where a query fails."""
        self.close()

    def _pread(self, start: int, end: int) -> bytes:
        return os.pread(self._descriptor, end - start, start)

    def close(self) -> None:
        """Give the descriptor back."""
        descriptor, self._descriptor = getattr(self, "_descriptor", -1), -1
        if descriptor >= 0:
            os.close(descriptor)


def connect(store: Store) -> tuple[duckdb.DuckDBPyConnection, TableFiles]:
    """A connection of its own that can read the store's files, and the file system it reads by.

    It reads nothing else, on the disk or on the web, writes nothing but what it spills into a
    private folder, loads no extension, and stays like that.
    """
    connection = duckdb.connect(config=_SETTINGS)
    # A query of seconds would draw a bar into the caller's output.
    connection.execute("SET enable_progress_bar = false")
    files = TableFiles(store)
    connection.register_filesystem(files)
    connection.execute(f"SET temp_directory = {_quoted(str(files.spill))}")
    if is_local(store.root):  # the system keeps what it has read, and reads ahead
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
    """A view of the Parquet files `names`; of none, an empty view with the columns of `schema`.

    `TableError` if the first of them, which gives the columns, is damaged, and `StorageError` if
    it cannot be read.
    """
    if names:
        paths = ", ".join(_quoted(files.add(name)) for name in names)
        # A folder above the table may be called `steps=10`, which is no column of it.
        source = f"read_parquet([{paths}], hive_partitioning = false)"
    else:
        source = f"{view}_without_rows"
        connection.register(source, schema.empty_table())
    try:
        connection.execute(f"CREATE OR REPLACE VIEW {view} AS SELECT * FROM {source}")
    except duckdb.Error as error:
        files.raise_failure()
        raise TableError(
            f"'{files.store.root}' has a damaged file among its {view}: {one_line(error)}"
        ) from error


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
