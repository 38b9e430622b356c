"""List the files below a folder in one order on every storage; look up many URIs at once."""

from __future__ import annotations

import bisect
import itertools
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import InputError, MissingError, StorageError
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


def is_folder(fs: Any, path: str, uri: str) -> bool:
    """Return whether `path` is a folder.

    Raises `MissingError` if nothing exists there.
    """
    with storage_errors(f"read '{uri}'"):
        return bool(fs.info(path)["type"] == "directory")


def file_entry(uri: str) -> Entry:
    """Return the entry of one file, named by its last component; `MissingError` if missing."""
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
    is_local = is_local_filesystem(fs)
    if is_bucket(fs):
        children = partial(_bucket_children, fs, path, uri)
    else:
        children = partial(_sorted_children, fs, path, counted)
    with storage_errors(f"list '{uri}'"):
        # A stack: folders may be nested deeper than Python's recursion limit.
        levels = [_Level("", os.path.realpath(path) if is_local else "", children(""))]
        while levels:
            level = levels[-1]
            child = next(level.children, None)
            if child is None:
                levels.pop()
            elif is_hidden(child.name):
                counted.add(HIDDEN)
            elif not child.name.endswith("/"):
                yield Entry(level.prefix + child.name, child.size, child.etag)
            elif may_enter(level.prefix + child.name[:-1]):
                prefix = level.prefix + child.name
                if is_local:
                    yield from _enter(path, prefix, levels, counted)
                else:
                    levels.append(_Level(prefix, "", children(prefix)))


class _Level(NamedTuple):
    """A folder on the current path of the walk, and the children that are still to visit.

    A folder among the children has a name that ends in "/": so they sort as full paths do.
    """

    prefix: str  # path inside the input
    real: str  # path with links resolved; "" on storages without links
    children: Iterator[Entry]


def _bucket_children(fs: Any, path: str, uri: str, prefix: str) -> Iterator[Entry]:
    """List a bucket by its keys: below `in/`, the key `in//b.jpg` has the name `/b.jpg`."""
    bucket, root = bucket_and_prefix(fs, path)
    return _in_order(bucket_pages(fs, bucket, root + prefix), join(uri, prefix))


def bucket_pages(fs: Any, bucket: str, prefix: str) -> Iterator[list[Entry]]:
    """Yield the children of a folder of S3 in pages; the names of folders end in "/"."""
    for page in listing_pages(fs, bucket, prefix, Delimiter="/"):
        children = []
        for item in page.get("Contents", ()):
            if item["Key"] != prefix:  # a bucket's empty "folder marker" object
                info = object_info(item)
                children.append(Entry(item["Key"][len(prefix) :], info.size, info.etag))
        folders = (item["Prefix"][len(prefix) :] for item in page.get("CommonPrefixes", ()))
        yield children + [Entry(name, 0, "") for name in folders]


def _in_order(pages: Iterator[list[Entry]], uri: str) -> Iterator[Entry]:
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
    waiting: list[Entry] = []
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


def _bound(page: list[Entry]) -> str:
    return max((child.name.removesuffix("/") for child in page), default="")


def _begins_below(page: list[Entry], bound: str) -> bool:
    return any(child.name < bound for child in page)


def _enter(root: str, prefix: str, levels: list[_Level], left_out: LeftOut) -> Iterator[Entry]:
    """Push a folder of a disk on `levels`; yield its entry instead if it cannot be listed."""
    path, name = f"{root}/{prefix[:-1]}", prefix[:-1].rpartition("/")[2]
    is_link = os.path.islink(path)  # noqa: PTH114 - `Path` raises where a path is too long
    real = os.path.realpath(path) if is_link else join(levels[-1].real, name)
    if any(level.real == real for level in levels):
        left_out.add(FOLDER_LOOP)
        return
    try:
        children = sorted(_local_children(path, left_out))
    except OSError as error:
        if not is_permanent(error):
            raise
        if path_exists(path):  # otherwise it was deleted since its parent was listed
            yield Entry(prefix, 0, UNREADABLE)
        return
    levels.append(_Level(prefix, real, iter(children)))


def _sorted_children(fs: Any, root: str, left_out: LeftOut, prefix: str) -> Iterator[Entry]:
    path = f"{root}/{prefix[:-1]}" if prefix else root
    listed = _local_children(path, left_out) if is_local_filesystem(fs) else children_of(fs, path)
    return iter(sorted(listed))


def children_of(fs: Any, path: str) -> Iterator[Entry]:
    """Yield what a folder of a storage that is neither a disk nor S3 holds.

    The names of folders end in "/".
    """
    for details in fs.ls(path, detail=True):
        name = str(details["name"]).rstrip("/").rsplit("/", 1)[-1]
        is_itself = str(details["name"]).rstrip("/") == path
        if details["type"] == "directory":
            if is_itself:
                raise InputError(
                    f"'{path}//' is a folder with an empty name: rename the files in it"
                )
            yield Entry(name + "/", 0, "")
        elif not is_itself:  # a bucket's empty "folder marker" object
            info = object_info(details)
            yield Entry(name, info.size, info.etag)


def _local_children(path: str, left_out: LeftOut) -> Iterator[Entry]:
    """List a folder of a disk without the dictionary of 1 kB per file that `fs.ls` builds."""
    with os.scandir(path) as children:
        for child in children:
            try:
                if child.is_dir():
                    yield Entry(child.name + "/", 0, "")
                else:
                    yield Entry(child.name, *local_state(child.path, child.stat()))
            except Special:
                left_out.add(HIDDEN if is_hidden(child.name) else SPECIAL)
            except OSError as error:
                if not is_permanent(error):
                    raise
                if path_exists(child.path):  # otherwise it was deleted since the folder was listed
                    yield Entry(child.name, 0, UNREADABLE)


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
        while batch := list(itertools.islice(source, _LOOKUP_BATCH)):
            yield from pool.map(look_up, batch)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def look_up(uri: str) -> Place:
    """Look up `uri`. A file that this user may not read exists, with the etag `UNREADABLE`."""
    fs, path = filesystem(uri)
    try:
        with storage_errors(f"read '{uri}'"):
            if is_local_filesystem(fs):
                return _look_up_on_disk(uri, path)
            details = fs.info(path)
    except MissingError:
        return Place(uri, exists=False)
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
