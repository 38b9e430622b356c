"""What is at each of many URIs: a file, a folder, or nothing; asked many at a time."""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import StorageError
from pipeline.storage.listing import UNKNOWN_SIZE
from pipeline.storage.local_files import is_lasting, is_there, local_state
from pipeline.storage.objects import UNREADABLE, object_info
from pipeline.storage.uris import filesystem, is_local_filesystem, storage_errors

_LOOKS = 32
_BATCH = 256


class Place(NamedTuple):
    """What is at a URI; `size` and `etag` are of a file, as a listing has them."""

    uri: str
    is_there: bool
    is_folder: bool = False
    size: int = 0
    etag: str = UNREADABLE


def looked_up(uris: Iterable[str]) -> Iterator[Place]:
    """What is at each of `uris`, in their order. Raises `StorageError` where nobody answers."""
    pool = ThreadPoolExecutor(_LOOKS, thread_name_prefix="look")
    source = iter(uris)
    try:
        while batch := list(islice(source, _BATCH)):
            yield from pool.map(look_up, batch)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def look_up(uri: str) -> Place:
    """What is at `uri`. A file that this user cannot read is there, with the etag `UNREADABLE`."""
    fs, path = filesystem(uri)
    if is_local_filesystem(fs):
        with storage_errors(f"read '{uri}'"):
            return _on_disk(uri, path)
    try:
        with storage_errors(f"read '{uri}'"):
            details = fs.info(path)
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return Place(uri, is_there=False)
        raise
    if details["type"] == "directory":
        return Place(uri, is_there=True, is_folder=True)
    info = object_info(details)
    known = details.get("size") is not None or "Size" in details
    return Place(uri, True, False, info.size if known else UNKNOWN_SIZE, info.etag)


def _on_disk(uri: str, path: str) -> Place:
    try:
        status = Path(path).stat()
        if stat.S_ISDIR(status.st_mode):
            return Place(uri, is_there=True, is_folder=True)
        return Place(uri, True, False, *local_state(path, status))
    except OSError as error:
        if not is_lasting(error):
            raise
        return Place(uri, is_there=is_there(path))
