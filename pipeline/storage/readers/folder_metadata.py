"""Fields of a folder's images out of a `metadata.csv` or `metadata.jsonl` beside or above them.

That is the layout of the Hugging Face hub's image folders: a row an image, whose `file_name` is the
image's path relative to the folder of the file.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

from pipeline.errors import InputError, StorageError
from pipeline.storage.listing import file_entry
from pipeline.storage.shards import Shard
from pipeline.storage.uris import read_file

FILES = ("metadata.csv", "metadata.jsonl")
MAX_METADATA_BYTES = 64 << 20
_FILE_NAME = "file_name"
_LOOKS = 16  # under way at a time
_CACHED = 4  # files that a process holds: the slices of one folder are read one after another

# A row as it stands in the file: the cells of a CSV file with their names, or a line of JSON.
_Row = tuple[tuple[str, ...], list[str]] | str


class FolderMetadata:
    """The rows about the images of one shard."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        self._known: dict[str, list[Mapping[str, _Row]]] = {}  # by folder

    def rows(self, names: Iterable[str]) -> list[dict[str, Any]]:
        """Return the fields of each of the images `names`; none for one without a row.

        The file in the nearest folder that has a row counts, a CSV file before the other. Empty
        cells and nulls are left out. Raises `InputError` for a file of more than 64 MB, and
        `StorageError` where the storage does not answer.
        """
        wanted = list(names)
        folders = {folder for name in wanted for folder in self._folders(name)}
        unknown = sorted(folders - self._known.keys())
        with ThreadPoolExecutor(_LOOKS) as pool:
            self._known.update(zip(unknown, pool.map(self._read, unknown), strict=True))
        return [self._fields(name) for name in wanted]

    def _folders(self, name: str) -> Iterator[str]:
        """The folders that `name` lies in, the nearest first; of a list only that one."""
        folder = name.rpartition("/")[0]
        yield folder
        while folder and self._shard.kind == "folder":
            folder = folder.rpartition("/")[0]
            yield folder

    def _read(self, folder: str) -> list[Mapping[str, _Row]]:
        uris = [self._shard.uri_of(f"{folder}/{name}" if folder else name) for name in FILES]
        found = []
        for uri in uris:
            try:
                entry = file_entry(uri)
            except StorageError as error:
                if isinstance(error.__cause__, FileNotFoundError):
                    continue
                raise
            if entry.size > MAX_METADATA_BYTES:
                raise InputError(
                    f"'{uri}' has {entry.size} bytes, of at most {MAX_METADATA_BYTES} that "
                    "--keep-columns reads: split the folder, or put its images into Parquet files"
                )
            found.append(_rows(uri, entry.etag))
        return found

    def _fields(self, name: str) -> dict[str, Any]:
        for folder in self._folders(name):
            relative = name[len(folder) + 1 :] if folder else name
            for rows in self._known[folder]:
                if relative in rows:
                    return _parsed(rows[relative])
        return {}


@lru_cache(maxsize=_CACHED)
def _rows(uri: str, _etag: str) -> Mapping[str, _Row]:
    """The rows of one file by the `file_name` of each; what is no row of an image is left out."""
    text = read_file(uri, MAX_METADATA_BYTES).decode("utf-8-sig", "replace")
    pairs = _of_csv(text) if uri.endswith(".csv") else _of_lines(text)
    return dict(pairs)


def _of_csv(text: str) -> Iterator[tuple[str, _Row]]:
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        header = tuple(next(reader, []))
        if _FILE_NAME not in header:
            return
        place = header.index(_FILE_NAME)
        for cells in reader:
            if len(cells) > place:
                yield cells[place], (header, cells)
    except csv.Error:
        return  # the images whose rows stand behind it have no fields, which is counted


def _of_lines(text: str) -> Iterator[tuple[str, _Row]]:
    for line in text.split("\n"):
        name = _json_object(line).get(_FILE_NAME)
        if isinstance(name, str):
            yield name, line


def _parsed(row: _Row) -> dict[str, Any]:
    if isinstance(row, str):
        return {name: value for name, value in _json_object(row).items() if value is not None}
    return {name: cell for name, cell in zip(*row, strict=False) if cell}


def _json_object(line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
