"""The files below a folder, in one order on every storage."""

from __future__ import annotations

import bisect
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import InputError, StorageError
from pipeline.storage.buckets import bucket_and_prefix, is_bucket, listing_pages
from pipeline.storage.formats import is_hidden
from pipeline.storage.objects import object_info
from pipeline.storage.uris import filesystem, is_local_filesystem, join, storage_errors


class Entry(NamedTuple):
    """A file: its path relative to the folder that was walked, its bytes, its etag."""

    name: str
    size: int
    etag: str


class _Child(NamedTuple):
    """A file or folder; a name of a folder ends in "/", so that they sort as their paths do."""

    name: str
    size: int
    etag: str


def is_folder(fs: Any, path: str, uri: str) -> bool:
    """Whether `path` is a folder; `StorageError` caused by `FileNotFoundError` if it is nothing."""
    with storage_errors(f"read '{uri}'"):
        return bool(fs.info(path)["type"] == "directory")


def file_entry(uri: str) -> Entry:
    """The entry of one file, named by its last component."""
    fs, path = filesystem(uri)
    name = uri.rsplit("/", 1)[-1]
    with storage_errors(f"read '{uri}'"):
        if is_local_filesystem(fs):
            return Entry(name, *_local_state(Path(path).stat()))
        info = object_info(fs.info(path))
    return Entry(name, info.size, info.etag)


def walk(fs: Any, path: str, uri: str) -> Iterator[Entry]:
    """Every file below `path` in the order of relative paths, hidden ones left out.

    Holds the listing of one folder a level at a time, so memory is that of the largest folders,
    not of the tree; of S3 two pages of it. Links to folders are followed, except back into a
    folder they lie in.
    """
    if is_bucket(fs):
        bucket, prefix = bucket_and_prefix(fs, path)
        yield from _walk_bucket(fs, bucket, prefix, uri, "")
    else:
        yield from _walk(fs, path, uri, "", ())


def _walk_bucket(fs: Any, bucket: str, root: str, uri: str, prefix: str) -> Iterator[Entry]:
    """As `_walk`, by the keys: of `in//b.jpg` below `in/` the name is `/b.jpg`, no child `in`."""
    with storage_errors(f"list '{uri}'"):
        for child in _in_order(_bucket_pages(fs, bucket, root + prefix), join(uri, prefix)):
            if is_hidden(child.name):
                continue
            if child.name.endswith("/"):
                yield from _walk_bucket(fs, bucket, root, uri, prefix + child.name)
            else:
                yield Entry(prefix + child.name, child.size, child.etag)


def _bucket_pages(fs: Any, bucket: str, prefix: str) -> Iterator[list[_Child]]:
    for page in listing_pages(fs, bucket, prefix, Delimiter="/"):
        children = [_Child(item["Prefix"], 0, "") for item in page.get("CommonPrefixes", ())]
        for item in page.get("Contents", ()):
            if item["Key"] != prefix:  # a bucket's empty "folder marker" object
                info = object_info(item)
                children.append(_Child(item["Key"], info.size, info.etag))
        yield [child._replace(name=child.name[len(prefix) :]) for child in children]


def _in_order(pages: Iterator[list[_Child]], uri: str) -> Iterator[_Child]:
    """The children of one folder in the order of paths, as its pages come.

    S3 lists in that order, `a-b` before `a/`. Other servers put the folder first, as `a`. Either
    way nothing comes later that is smaller than any name so far is without its slash. A store that
    keeps neither order shows it on the second page: its folders are listed to their ends first.
    """
    first, second = next(pages, []), next(pages, [])
    pages = itertools.chain([first, second], pages)
    if _begins_below(second, _bound(first)):
        pages = iter([list(itertools.chain.from_iterable(pages))])
    waiting: list[_Child] = []
    bound = ""
    for page in pages:
        if _begins_below(page, bound):
            raise StorageError(f"'{uri}' is listed in no order: run again, or put it into tars")
        bound = max(bound, _bound(page))
        waiting = sorted(waiting + page)
        known = bisect.bisect_right(waiting, bound, key=lambda child: child.name)
        yield from waiting[:known]
        waiting = waiting[known:]
    yield from waiting


def _bound(page: list[_Child]) -> str:
    return max((child.name.removesuffix("/") for child in page), default="")


def _begins_below(page: list[_Child], bound: str) -> bool:
    return any(child.name < bound for child in page)


def _walk(
    fs: Any,
    path: str,
    uri: str,
    prefix: str,
    above: tuple[str, ...],
) -> Iterator[Entry]:
    if is_local_filesystem(fs):
        real = os.path.realpath(path)
        if real in above:
            return
        above = (*above, real)
    with storage_errors(f"list '{uri}'"):
        children = sorted(_children(fs, path))
    for child in children:
        if is_hidden(child.name):
            continue
        if child.name.endswith("/"):
            name = child.name[:-1]
            yield from _walk(fs, f"{path}/{name}", uri, prefix + child.name, above)
        else:
            yield Entry(prefix + child.name, child.size, child.etag)


def _children(fs: Any, path: str) -> Iterator[_Child]:
    if is_local_filesystem(fs):
        yield from _local_children(path)
        return
    for details in fs.ls(path, detail=True):
        name = str(details["name"]).rstrip("/").rsplit("/", 1)[-1]
        is_itself = str(details["name"]).rstrip("/") == path
        if details["type"] == "directory":
            if is_itself:
                raise InputError(f"'{path}//' is a folder without a name: rename what lies in it")
            yield _Child(name + "/", 0, "")
        elif not is_itself:  # a bucket's empty "folder marker" object
            info = object_info(details)
            yield _Child(name, info.size, info.etag)


def _local_children(path: str) -> Iterator[_Child]:
    """As `fs.ls`, without its dictionary of a kilobyte for each file."""
    with os.scandir(path) as children:
        for child in children:
            if child.is_dir():
                yield _Child(child.name + "/", 0, "")
            elif child.is_file():
                yield _Child(child.name, *_local_state(child.stat()))
            elif child.is_symlink():
                raise InputError(f"'{child.path}' is a link to nothing")


def _local_state(status: os.stat_result) -> tuple[int, str]:
    return status.st_size, f"{status.st_size}-{status.st_mtime_ns}"
