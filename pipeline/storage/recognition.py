"""Which of the files that a listing shows are images or shards: by name, else by first bytes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import chain
from typing import Literal, NamedTuple

from pipeline.errors import StorageError
from pipeline.storage.credentials import is_denied
from pipeline.storage.file_types import (
    Kind,
    is_image,
    may_be_image,
    plain_name,
    readable_name,
    shard_kind,
    shard_stem,
)
from pipeline.storage.left_out import LeftOut
from pipeline.storage.listing import Entry
from pipeline.storage.objects import UNREADABLE, is_dead_link
from pipeline.storage.parquet_columns import has_bytes, schema_of
from pipeline.storage.readers.archive_members import START_BYTES, is_image_start
from pipeline.storage.s3 import get_head, is_bucket
from pipeline.storage.seekable import read_start
from pipeline.storage.uris import filesystem, is_local, storage_errors

# Looks into files that are under way at a time, and entries that may wait for them in memory.
_LOOKS = 32
_BATCH_LOOKS, _BATCH_ENTRIES = 256, 4096

Found = Kind | Literal["image"]


class _Waiting(NamedTuple):
    """An entry, and what tells what it is: its name, or a look into it."""

    entry: Entry
    found: Found | None
    look: Callable[[], Found | None] | None = None


def recognised(
    entries: Iterable[Entry],
    uri_of: Callable[[str], str],
    left_out: LeftOut,
    *,
    sniffing: bool,
    alone: bool = False,
    imageless: list[str],
) -> Iterator[tuple[Entry, Found]]:
    """The images and shards among `entries`, in their order; the others are counted.

    Of Parquet files the footer is read, as one without images (`metadata.parquet`) is no shard,
    unless it is `alone`, all that the input is: then its reader tells what is wrong. The first such
    is noted in `imageless`. With
    `sniffing`, names without a known extension (`may_be_image`) are told by their first bytes;
    without it, what is `beside_tar` is metadata by its name alone, and a dead link of a shard's
    name a shard, which fails.
    Looks into files on a disk come as they are needed, others some dozens at a time. What cannot
    be read is an image, so that it becomes a reject, unless its name says that it is none.
    Raises `StorageError` where a storage that is not a disk does not answer.
    """
    pool = ThreadPoolExecutor(_LOOKS, thread_name_prefix="look")
    waiting = (_by_name(entry, uri_of, sniffing, alone) for entry in entries)
    try:
        for batch in _batches(waiting):
            looks = pool.map(lambda look: look(), [one.look for one in batch if one.look])
            for entry, known, look in batch:
                found = next(looks) if look else known
                if found:
                    yield entry, found
                else:
                    left_out.add_file(readable_name(entry.name))
                    if shard_kind(entry.name) and not imageless:
                        imageless.append(uri_of(entry.name))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _by_name(entry: Entry, uri_of: Callable[[str], str], sniffing: bool, alone: bool) -> _Waiting:
    uri, readable = uri_of(entry.name), entry.etag != UNREADABLE
    name = plain_name(uri)
    if name.endswith("/") or is_image(name):
        return _Waiting(entry, "image")
    if kind := shard_kind(name):
        if sniffing and not readable and is_local(uri) and is_dead_link(uri):
            return _Waiting(entry, "image")  # a reject, as a shard it would fail for ever
        if entry.beside_tar:
            look = partial(_look_beside_tar, uri) if sniffing and readable else None
            return _Waiting(entry, None, look)
        if kind != "parquet" or alone or not readable:
            return _Waiting(entry, kind)
        return _Waiting(entry, None, partial(_look_at_parquet, uri))
    if not sniffing or not may_be_image(name):
        return _Waiting(entry, None)
    if not readable or not entry.size:
        return _Waiting(entry, None if readable else "image")
    if is_local(uri):
        return _Waiting(entry, _look_at_disk(uri))
    return _Waiting(entry, None, partial(_look_at_object, uri))


def _batches(waiting: Iterable[_Waiting]) -> Iterator[list[_Waiting]]:
    """Runs of entries that are looked into together; an entry that needs no look does not wait."""
    batch: list[_Waiting] = []
    looks = 0
    for one in waiting:
        batch.append(one)
        looks += one.look is not None
        if not looks or looks == _BATCH_LOOKS or len(batch) == _BATCH_ENTRIES:
            yield batch
            batch, looks = [], 0
    if batch:
        yield batch


def _look_at_parquet(uri: str) -> Found | None:
    """Whether a Parquet file holds images; of one that cannot be told its reader says why."""
    try:
        schema = schema_of(uri)
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        if is_local(uri) or is_denied(error.__cause__):
            return "parquet"
        raise
    return "parquet" if schema is None or has_bytes(schema) else None


def _look_beside_tar(uri: str) -> Found | None:
    """As `_look_at_parquet`, of what is metadata where it is not known to hold images."""
    try:
        schema = schema_of(uri)
    except StorageError as error:
        if is_local(uri) or isinstance(error.__cause__, FileNotFoundError):
            return None
        raise
    return "parquet" if schema is not None and has_bytes(schema) else None


def _look_at_disk(path: str) -> Found | None:
    """What a file on a disk is; the folder's reader tells why one cannot be opened."""
    try:
        file = os.open(
            path, os.O_RDONLY | os.O_NONBLOCK
        )  # in half the time of `open`, for each of millions
        try:
            return "image" if is_image_start(os.read(file, START_BYTES)) else None
        finally:
            os.close(file)
    except OSError:
        return "image"


def _look_at_object(uri: str) -> Found | None:
    """What a file elsewhere is; nothing if it is gone since it was listed."""
    with suppress(_GoneError):
        return "image" if is_image_start(read_head(uri)) else None
    return None


class _GoneError(Exception):
    """There is no such file any more."""


def read_head(uri: str) -> bytes:
    """The first bytes of a file, by one request; `StorageError` where the storage fails."""
    fs, path = filesystem(uri)
    try:
        with storage_errors(f"read '{uri}'"):
            if is_bucket(fs):
                return get_head(fs, path, START_BYTES)
            return read_start(uri, START_BYTES)
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise _GoneError from error
        raise


def mark_beside_tars(entries: Iterable[Entry]) -> Iterator[Entry]:
    """The sorted `entries` of a folder, with `beside_tar` where an `x.tar` is beside `x.parquet`.

    A Parquet file is given out behind what may be its tar, or before what is in the folder `x`.
    """
    waiting: Entry | None = None
    for entry in chain(entries, (None,)):
        if waiting and entry:
            stem = shard_stem(waiting.name)
            if shard_kind(entry.name) == "tar" and shard_stem(entry.name) == stem:
                waiting = waiting._replace(beside_tar=True)
            elif entry.name > f"{stem}/":
                yield waiting
                waiting = None
        is_parquet = entry is not None and shard_kind(entry.name) == "parquet"
        if waiting and (entry is None or is_parquet):
            yield waiting
            waiting = None
        if is_parquet:
            waiting = entry
        elif entry:
            yield entry
