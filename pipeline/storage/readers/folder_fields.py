"""Read the fields that lie beside a folder's images: sidecar files and metadata files.

The sidecars of `a.jpg` are `a.txt`, `a.json`, .... A `metadata.csv` or `metadata.jsonl` has the
layout of the Hugging Face hub's image folders: one row per image, whose `file_name` is the image's
path relative to the folder of that file.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline.errors import InputError, MissingError
from pipeline.storage.file_types import stem_of
from pipeline.storage.kept_columns import MAX_FIELD_BYTES, fields_of, json_object
from pipeline.storage.left_out import LeftOut
from pipeline.storage.listing import file_entry
from pipeline.storage.read_options import ReadOptions
from pipeline.storage.readers.folder import fetch_files, group_by_root
from pipeline.storage.sample import Sample
from pipeline.storage.shards import Shard
from pipeline.storage.uris import filesystem, is_local_filesystem, join, read_file, storage_errors

# Images whose sidecars are fetched together.
_IMAGES, _BYTES = 16, 64 << 20
METADATA_FILES = ("metadata.csv", "metadata.jsonl")
MAX_METADATA_BYTES = 64 << 20
_FILE_NAME = "file_name"
_READ_THREADS = 16
_CACHED = 4  # metadata files in memory: the slices of one folder are read one after another

# A row as the file holds it: header and cells of a CSV file, or a line of JSON.
_Row = tuple[tuple[str, ...], list[str]] | str


def with_fields(
    samples: Iterable[Sample], shard: Shard, options: ReadOptions, left_out: LeftOut
) -> Iterator[Sample]:
    """Add the fields of `options.keep_columns` to the samples of a folder's slice.

    The field `f` of `a.jpg` comes from a metadata file (`FolderMetadata`), else from the file
    `a.f`, else from the field `f` of `a.json`. Raises `StorageError` if the storage does not
    answer.
    """
    names = dict(zip(shard.keys, shard.names, strict=True))
    metadata = FolderMetadata(shard)
    for group in _groups(samples):
        rows = metadata.rows(names[sample.key] for sample in group)
        stems = [stem_of(names[sample.key]) for sample in group]
        extensions = sorted({*options.keep_columns, "json"})
        contents = _contents(shard, [f"{stem}.{end}" for stem in stems for end in extensions])
        for sample, stem, row in zip(group, stems, rows, strict=True):
            sidecars = {
                end: contents[f"{stem}.{end}"] for end in extensions if f"{stem}.{end}" in contents
            }
            fields = fields_of(sidecars, row, options.keep_columns, left_out)
            yield replace(sample, fields=fields)


def _groups(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    group: list[Sample] = []
    size = 0
    for sample in samples:
        group.append(sample)
        size += len(sample.content)
        if len(group) == _IMAGES or size > _BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _contents(shard: Shard, names: list[str]) -> dict[str, bytes]:
    """Read the files that exist and are not too long; return the contents by name."""
    contents: dict[str, bytes] = {}
    with storage_errors(f"read the sidecars of the images of '{shard.source}'"):
        for root, paths in group_by_root(shard, names).items():
            for path, content in _files(root, [*paths]):
                contents[paths[path]] = content
    return contents


def _files(root: str, names: list[str]) -> Iterator[tuple[str, bytes]]:
    fs, root_path = filesystem(root)
    if is_local_filesystem(fs):
        for name in names:
            path = Path(join(root_path, name))
            if path.is_file() and path.stat().st_size <= MAX_FIELD_BYTES:
                yield name, path.read_bytes()
        return
    for name, result in zip(names, fetch_files(fs, root_path, names), strict=True):
        if isinstance(result, BaseException):
            if not isinstance(result, FileNotFoundError):
                raise result
        elif len(result.content) <= MAX_FIELD_BYTES:
            yield name, result.content


class FolderMetadata:
    """Metadata rows of the images of one shard."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        self._files: dict[str, list[Mapping[str, _Row]]] = {}  # folder -> its metadata files

    def rows(self, names: Iterable[str]) -> list[dict[str, Any]]:
        """Return the fields of each of the images `names`; none for an image without a row.

        The row in the nearest folder is used, of the CSV file first. Empty cells and nulls are left
        out. Raises `InputError` for a file of more than 64 MB, and `StorageError` if the storage
        does not answer.
        """
        images = list(names)
        folders = {folder for name in images for folder in self._folders(name)}
        unread = sorted(folders - self._files.keys())
        with ThreadPoolExecutor(_READ_THREADS) as pool:
            self._files.update(zip(unread, pool.map(self._read, unread), strict=True))
        return [self._fields(name) for name in images]

    def _folders(self, name: str) -> Iterator[str]:
        """Yield the folders that contain `name`, the nearest first; for a list only that one."""
        folder = name.rpartition("/")[0]
        yield folder
        while folder and self._shard.kind == "folder":
            folder = folder.rpartition("/")[0]
            yield folder

    def _read(self, folder: str) -> list[Mapping[str, _Row]]:
        uris = [
            self._shard.uri_of(f"{folder}/{name}" if folder else name) for name in METADATA_FILES
        ]
        files = []
        for uri in uris:
            try:
                entry = file_entry(uri)
            except MissingError:
                continue
            if entry.size > MAX_METADATA_BYTES:
                raise InputError(
                    f"'{uri}' has {entry.size} bytes, of at most {MAX_METADATA_BYTES} that "
                    "--keep-columns reads: split the folder, or store its images in Parquet files"
                )
            files.append(_rows(uri, entry.etag))
        return files

    def _fields(self, name: str) -> dict[str, Any]:
        for folder in self._folders(name):
            relative = name[len(folder) + 1 :] if folder else name
            for rows in self._files[folder]:
                if relative in rows:
                    return _parse_row(rows[relative])
        return {}


@lru_cache(maxsize=_CACHED)
def _rows(uri: str, _etag: str) -> Mapping[str, _Row]:
    """Read one metadata file; return `file_name` -> row, without rows that name no file.

    `_etag` is part of the cache key: a changed file is read again.
    """
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
        return  # the images of later rows have no fields, which is counted


def _of_lines(text: str) -> Iterator[tuple[str, _Row]]:
    for line in text.split("\n"):
        name = json_object(line).get(_FILE_NAME)
        if isinstance(name, str):
            yield name, line


def _parse_row(row: _Row) -> dict[str, Any]:
    if isinstance(row, str):
        return {name: value for name, value in json_object(row).items() if value is not None}
    return {name: cell for name, cell in zip(*row, strict=False) if cell}
