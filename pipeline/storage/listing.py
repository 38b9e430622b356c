"""List the files below a folder in one order on every storage; look up many URIs at once."""

from __future__ import annotations

import bisect
import itertools
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import InputError, StorageError
from pipeline.storage.file_types import is_hidden
from pipeline.storage.left_out import FOLDER_LOOP, HIDDEN, SPECIAL, LeftOut
from pipeline.storage.objects import (
    UNREADABLE,
    Special,
    is_permanent,
    local_state,
    object_info,
    path_exists,
)
from pipeline.storage.s3 import bucket_and_prefix, is_bucket, listing_pages
from pipeline.storage.uris import filesystem, is_local_filesystem, join, storage_errors

UNKNOWN_SIZE = -1


class Entry(NamedTuple):
    """A listed file: its path relative to the listed folder, its size in bytes, its etag.

    A file that neither this run nor a later one can read has the etag `UNREADABLE`. A folder that
    cannot be listed is an entry whose name ends in "/". `size` is `UNKNOWN_SIZE` if the storage
    does not report it. `beside_tar` marks an `x.parquet` beside an `x.tar`: img2dataset writes URLs
    and captions into such files.
    """

    name: str
    size: int
    etag: str
    beside_tar: bool = False


class _Child(NamedTuple):
    """A file or folder. A folder's name ends in "/", so that children sort as full paths do."""

    name: str
    size: int
    etag: str


def is_folder(fs: Any, path: str, uri: str) -> bool:
    """Return whether `path` is a folder.

    Raises `StorageError`, caused by `FileNotFoundError`, if nothing exists there.
    """
    with storage_errors(f"read '{uri}'"):
        return bool(fs.info(path)["type"] == "directory")


def file_entry(uri: str) -> Entry:
    """Return the entry of one file, named by its last component; `StorageError` if missing."""
    fs, path = filesystem(uri)
    name = uri.rsplit("/", 1)[-1]
    with storage_errors(f"read '{uri}'"):
        if is_local_filesystem(fs):
            return Entry(name, *local_state(path, Path(path).stat()))
        return Entry(name, *_object_state(fs.info(path)))


def _object_state(details: dict[str, Any]) -> tuple[int, str]:
    """Return size and etag of an object, as in a listing."""
    info = object_info(details)
    has_size = details.get("size") is not None or "Size" in details
    return info.size if has_size else UNKNOWN_SIZE, info.etag


def walk(
    fs: Any,
    path: str,
    uri: str,
    left_out: LeftOut | None = None,
    descend: Callable[[str], bool] | None = None,
) -> Iterator[Entry]:
    """Yield every file below `path` in the order of relative paths, without hidden files.

    Memory holds the listing of one folder per level (two pages of it on S3), not of the whole
    tree. Links to folders are followed, except links to a folder that contains them. On a disk an
    unreadable file is an entry with the etag `UNREADABLE`. Files that are skipped are counted in
    `left_out`; a hidden folder counts once. Folders whose relative paths `descend` refuses are
    neither listed nor counted.
    """
    counted = LeftOut() if left_out is None else left_out
    may_enter = descend or (lambda _: True)
    if is_bucket(fs):
        bucket, prefix = bucket_and_prefix(fs, path)
        yield from _walk_bucket(_Bucket(fs, bucket, prefix, uri, counted, may_enter), "")
    else:
        yield from _walk(fs, path, uri, counted, may_enter)


class _Bucket(NamedTuple):
    """A bucket to list, and the arguments of `walk`."""

    fs: Any
    name: str
    root: str
    uri: str
    left_out: LeftOut
    descend: Callable[[str], bool]


def _walk_bucket(bucket: _Bucket, prefix: str) -> Iterator[Entry]:
    """List a bucket by its keys: below `in/`, the key `in//b.jpg` has the name `/b.jpg`."""
    with storage_errors(f"list '{bucket.uri}'"):
        pages = _bucket_pages(bucket.fs, bucket.name, bucket.root + prefix)
        for child in _in_order(pages, join(bucket.uri, prefix)):
            if is_hidden(child.name):
                bucket.left_out.add(HIDDEN)
            elif not child.name.endswith("/"):
                yield Entry(prefix + child.name, child.size, child.etag)
            elif bucket.descend(prefix + child.name[:-1]):
                yield from _walk_bucket(bucket, prefix + child.name)


def _bucket_pages(fs: Any, bucket: str, prefix: str) -> Iterator[list[_Child]]:
    for page in listing_pages(fs, bucket, prefix, Delimiter="/"):
        children = [_Child(item["Prefix"], 0, "") for item in page.get("CommonPrefixes", ())]
        for item in page.get("Contents", ()):
            if item["Key"] != prefix:  # a bucket's empty "folder marker" object
                info = object_info(item)
                children.append(_Child(item["Key"], info.size, info.etag))
        yield [child._replace(name=child.name[len(prefix) :]) for child in children]


def _in_order(pages: Iterator[list[_Child]], uri: str) -> Iterator[_Child]:
    """Yield the children of one folder in the order of paths, as its pages arrive.

    S3 lists in that order, `a-b` before `a/`. Other servers sort the folder as `a`, before `a-b`.
    In both orders no later name is smaller than an earlier name without its slash. A store that
    keeps neither order shows it on the second page: then all pages of a folder are read before its
    first child is yielded.
    """
    first, second = next(pages, []), next(pages, [])
    pages = itertools.chain([first, second], pages)
    if _begins_below(second, _bound(first)):
        pages = iter([list(itertools.chain.from_iterable(pages))])
    waiting: list[_Child] = []
    bound = ""
    for page in pages:
        if _begins_below(page, bound):
            raise StorageError(
                f"'{uri}' is not listed in a consistent order: run again, or pack the files into "
                "tars"
            )
        bound = max(bound, _bound(page))
        waiting = sorted(waiting + page)
        ready = bisect.bisect_right(waiting, bound, key=lambda child: child.name)
        yield from waiting[:ready]
        waiting = waiting[ready:]
    yield from waiting


def _bound(page: list[_Child]) -> str:
    return max((child.name.removesuffix("/") for child in page), default="")


def _begins_below(page: list[_Child], bound: str) -> bool:
    return any(child.name < bound for child in page)


class _Level(NamedTuple):
    """A folder on the current path of the walk, and the children that are still to visit."""

    prefix: str  # path inside the input
    real: str  # path with links resolved; "" on storages without links
    children: Iterator[_Child]


def _walk(
    fs: Any, path: str, uri: str, left_out: LeftOut, descend: Callable[[str], bool]
) -> Iterator[Entry]:
    """List with an explicit stack: folders may be nested deeper than Python's recursion limit."""
    with storage_errors(f"list '{uri}'"):
        real = os.path.realpath(path) if is_local_filesystem(fs) else ""
        levels = [_Level("", real, iter(sorted(_children(fs, path, left_out))))]
        while levels:
            level = levels[-1]
            child = next(level.children, None)
            if child is None:
                levels.pop()
            elif is_hidden(child.name):
                left_out.add(HIDDEN)
            elif not child.name.endswith("/"):
                yield Entry(level.prefix + child.name, child.size, child.etag)
            elif descend(level.prefix + child.name[:-1]):
                yield from _enter(fs, path, level.prefix + child.name, levels, left_out)


def _enter(
    fs: Any, root: str, prefix: str, levels: list[_Level], left_out: LeftOut
) -> Iterator[Entry]:
    """Push a folder on `levels`; yield its entry instead if it cannot be listed."""
    path, real = f"{root}/{prefix[:-1]}", ""
    if is_local_filesystem(fs):
        inside, name = levels[-1].real, prefix[:-1].rpartition("/")[2]
        is_link = os.path.islink(path)  # noqa: PTH114 - `Path` raises where a path is too long
        real = os.path.realpath(path) if is_link else join(inside, name)
        if any(level.real == real for level in levels):
            left_out.add(FOLDER_LOOP)
            return
    try:
        children = sorted(_children(fs, path, left_out))
    except OSError as error:
        if not is_local_filesystem(fs) or not is_permanent(error):
            raise
        if path_exists(path):  # otherwise it was deleted since its parent was listed
            yield Entry(prefix, 0, UNREADABLE)
        return
    levels.append(_Level(prefix, real, iter(children)))


def _children(fs: Any, path: str, left_out: LeftOut) -> Iterator[_Child]:
    if is_local_filesystem(fs):
        yield from _local_children(path, left_out)
        return
    for details in fs.ls(path, detail=True):
        name = str(details["name"]).rstrip("/").rsplit("/", 1)[-1]
        is_itself = str(details["name"]).rstrip("/") == path
        if details["type"] == "directory":
            if is_itself:
                raise InputError(
                    f"'{path}//' is a folder with an empty name: rename the files in it"
                )
            yield _Child(name + "/", 0, "")
        elif not is_itself:  # a bucket's empty "folder marker" object
            info = object_info(details)
            yield _Child(name, info.size, info.etag)


def _local_children(path: str, left_out: LeftOut) -> Iterator[_Child]:
    """List a folder of a disk without the dictionary of 1 kB per file that `fs.ls` builds."""
    with os.scandir(path) as children:
        for child in children:
            try:
                if child.is_dir():
                    yield _Child(child.name + "/", 0, "")
                else:
                    yield _Child(child.name, *local_state(child.path, child.stat()))
            except Special:
                left_out.add(HIDDEN if is_hidden(child.name) else SPECIAL)
            except OSError as error:
                if not is_permanent(error):
                    raise
                if path_exists(child.path):  # otherwise it was deleted since the folder was listed
                    yield _Child(child.name, 0, UNREADABLE)


_LOOKUP_THREADS = 32
_LOOKUP_BATCH = 256


class Place(NamedTuple):
    """Result of looking up a URI. `size` and `etag` are those of a file, as in a listing."""

    uri: str
    exists: bool
    is_folder: bool = False
    size: int = 0
    etag: str = UNREADABLE


def look_up_all(uris: Iterable[str]) -> Iterator[Place]:
    """Look up `uris` in parallel and yield the results in order.

    Raises `StorageError` if a storage does not answer.
    """
    pool = ThreadPoolExecutor(_LOOKUP_THREADS, thread_name_prefix="look-up")
    source = iter(uris)
    try:
        while batch := list(islice(source, _LOOKUP_BATCH)):
            yield from pool.map(look_up, batch)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def look_up(uri: str) -> Place:
    """Look up `uri`. A file that this user may not read exists, with the etag `UNREADABLE`."""
    fs, path = filesystem(uri)
    if is_local_filesystem(fs):
        with storage_errors(f"read '{uri}'"):
            return _look_up_on_disk(uri, path)
    try:
        with storage_errors(f"read '{uri}'"):
            details = fs.info(path)
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return Place(uri, exists=False)
        raise
    if details["type"] == "directory":
        return Place(uri, exists=True, is_folder=True)
    return Place(uri, True, False, *_object_state(details))


def _look_up_on_disk(uri: str, path: str) -> Place:
    try:
        status = Path(path).stat()
        if stat.S_ISDIR(status.st_mode):
            return Place(uri, exists=True, is_folder=True)
        return Place(uri, True, False, *local_state(path, status))
    except OSError as error:
        if not is_permanent(error):
            raise
        return Place(uri, exists=path_exists(path))
