"""Recognise the images and shards among listed files: by name, else by their first bytes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Literal, NamedTuple

from pipeline.errors import MissingError, StorageError
from pipeline.storage.credentials import is_denied
from pipeline.storage.file_types import (
    Kind,
    is_image,
    may_be_image,
    plain_name,
    readable_name,
    shard_kind,
)
from pipeline.storage.input_files import Source
from pipeline.storage.left_out import LeftOut
from pipeline.storage.listing import Entry
from pipeline.storage.objects import UNREADABLE, is_dead_link
from pipeline.storage.parquet_columns import has_bytes, schema_of
from pipeline.storage.readers.archive_members import START_BYTES, is_image_start
from pipeline.storage.s3 import get_head, is_bucket
from pipeline.storage.uris import filesystem, is_local, is_web, storage_errors

# Parallel reads of file contents. A batch ends at so many reads, or so many entries in memory.
_READ_THREADS = 32
_BATCH_READS, _BATCH_ENTRIES = 256, 4096

FileKind = Kind | Literal["image"]


class _Candidate(NamedTuple):
    """An entry with the kind that its name says, or a function that reads the file to decide."""

    entry: Entry
    kind: FileKind | None
    inspect: Callable[[], FileKind | None] | None = None


def recognise(
    source: Source, left_out: LeftOut, *, sniffing: bool, imageless: list[str]
) -> Iterator[tuple[Entry, FileKind]]:
    """Yield the images and shards of an input, in order, and count other files in `left_out`.

    A Parquet file is a shard if its footer names a column of images; the URI of the first one
    without is added to `imageless`. An input that is one Parquet file is always a shard: its reader
    explains what is wrong with it.

    With `sniffing`, files without a known extension (`may_be_image`) are recognised by their first
    bytes. Without it a Parquet file `beside_tar` is metadata by its name, and a dead link with the
    name of a shard is a shard, which fails.

    Files on a disk are read one by one, others in parallel. A file that cannot be read counts as an
    image, which becomes a reject, unless its extension says that it is none. Raises `StorageError`
    if a storage other than a disk does not answer.
    """
    pool = ThreadPoolExecutor(_READ_THREADS, thread_name_prefix="sniff")
    candidates = (_by_name(entry, source, sniffing) for entry in source.entries)
    try:
        for batch in _batches(candidates):
            kinds = pool.map(
                lambda inspect: inspect(), [item.inspect for item in batch if item.inspect]
            )
            for entry, kind_by_name, inspect in batch:
                kind = next(kinds) if inspect else kind_by_name
                if kind:
                    yield entry, kind
                else:
                    left_out.add_file(readable_name(entry.name))
                    if shard_kind(entry.name) and not imageless:
                        imageless.append(source.uri_of(entry.name))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _by_name(entry: Entry, source: Source, sniffing: bool) -> _Candidate:
    uri, readable = source.uri_of(entry.name), entry.etag != UNREADABLE
    name = plain_name(uri)
    if name.endswith("/") or is_image(name):
        return _Candidate(entry, "image")
    if kind := shard_kind(name):
        if sniffing and not readable and is_local(uri) and is_dead_link(uri):
            return _Candidate(entry, "image")  # becomes a reject; as a shard it would always fail
        if entry.beside_tar:
            inspect = partial(_inspect_parquet, uri, None) if sniffing and readable else None
            return _Candidate(entry, None, inspect)
        if kind != "parquet" or source.alone or not readable:
            return _Candidate(entry, kind)
        return _Candidate(entry, None, partial(_inspect_parquet, uri, "parquet"))
    if not sniffing or not may_be_image(name):
        return _Candidate(entry, None)
    if not readable or not entry.size:
        return _Candidate(entry, None if readable else "image")
    if is_local(uri):
        return _Candidate(entry, _inspect_disk_file(uri))
    return _Candidate(entry, None, partial(_inspect_object, uri))


def _batches(candidates: Iterable[_Candidate]) -> Iterator[list[_Candidate]]:
    """Group the candidates whose files are read together.

    A candidate that needs no read is passed on at once unless it follows one that does.
    """
    batch: list[_Candidate] = []
    reads = 0
    for candidate in candidates:
        batch.append(candidate)
        reads += candidate.inspect is not None
        if not reads or reads == _BATCH_READS or len(batch) == _BATCH_ENTRIES:
            yield batch
            batch, reads = [], 0
    if batch:
        yield batch


def _inspect_parquet(uri: str, doubtful: FileKind | None) -> FileKind | None:
    """Return "parquet" if a file has a column of images, and None if it has none or was deleted.

    Returns `doubtful` if it is damaged or may not be read: "parquet" where its reader is to explain
    this, None beside a tar, where the file is then metadata.
    """
    try:
        schema = schema_of(uri)
    except MissingError:
        return None
    except StorageError as error:
        if is_local(uri) or (doubtful and is_denied(error.__cause__)):
            return doubtful
        raise
    if schema is None:
        return doubtful
    return "parquet" if has_bytes(schema) else None


def _inspect_disk_file(path: str) -> FileKind | None:
    """Return "image" if a file on a disk begins like one or cannot be opened."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # takes half the time of `open`
        try:
            return "image" if is_image_start(os.read(file, START_BYTES)) else None
        finally:
            os.close(file)
    except OSError:
        return "image"


def _inspect_object(uri: str) -> FileKind | None:
    """Return "image" if a file of another storage begins like one; None if it was deleted."""
    try:
        return "image" if is_image_start(read_head(uri)) else None
    except MissingError:
        return None


def read_head(uri: str) -> bytes:
    """Read the first bytes of a file with one request; `StorageError` if the storage fails."""
    fs, path = filesystem(uri)
    with storage_errors(f"read '{uri}'"):
        if is_bucket(fs):
            return get_head(fs, path, START_BYTES)
        if is_web(uri):  # a server without ranges would send the whole file
            with fs.open(path, "rb", block_size=0) as stream:
                return bytes(stream.read(START_BYTES))
        return bytes(fs.cat_file(path, start=0, end=START_BYTES))[:START_BYTES]
