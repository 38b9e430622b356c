"""Samples out of a slice of a folder listing."""

from __future__ import annotations

from collections.abc import Container, Iterator
from itertools import starmap
from typing import Any, NamedTuple

from pipeline.errors import StorageError
from pipeline.storage.buckets import Fetched, get_objects, is_bucket
from pipeline.storage.formats import readable_name
from pipeline.storage.listing import Entry, file_entry
from pipeline.storage.objects import object_info
from pipeline.storage.sample import MAX_SAMPLE_BYTES, Sample, too_large
from pipeline.storage.shards import Shard, folder_etag
from pipeline.storage.uris import filesystem, join, storage_errors

# Requests in flight against an object store, and the bytes that may wait in memory for their turn.
_REQUESTS = 16
_BYTES_AHEAD = 64 << 20


class _File(NamedTuple):
    key: str
    name: str
    size: int


def read_folder(shard: Shard, keys: Container[str] | None = None) -> Iterator[Sample]:
    """One sample a file, or of those with `keys`; the others are not fetched.

    S3 says with each file what state it is of: where they are not the shard's, `StorageError` at
    the end; not of a part of the files, for which there is no etag. Other stores' files are
    compared by size.
    """
    etag_of_all = shard.etag if keys is None else ""
    read: list[Entry] = []
    for group in _groups(shard, keys):
        contents = _contents(shard, [name for _, name, size in group if size <= MAX_SAMPLE_BYTES])
        for key, name, size in group:
            uri = join(shard.source, readable_name(name))
            if name in contents:
                content, etag = contents.pop(name)
                if len(content) != size:
                    raise StorageError(f"'{uri}' changed while it was read; run again")
                yield Sample(key, uri, content)
            else:
                etag = file_entry(join(shard.uri, name)).etag if etag_of_all else ""
                yield too_large(key, uri, size)
            read.append(Entry(name, size, etag))
    if etag_of_all and all(entry.etag for entry in read) and folder_etag(read) != etag_of_all:
        raise StorageError(f"the shard '{shard.uri}' changed while it was read; run again")


def _groups(shard: Shard, keys: Container[str] | None) -> Iterator[list[_File]]:
    """Runs of files that are fetched together."""
    group: list[_File] = []
    total = 0
    for file in starmap(_File, zip(shard.keys, shard.names, shard.sizes, strict=True)):
        if keys is not None and file.key not in keys:
            continue
        if group and (len(group) == _REQUESTS or total + file.size > _BYTES_AHEAD):
            yield group
            group, total = [], 0
        group.append(file)
        total += file.size
    if group:
        yield group


def _contents(shard: Shard, names: list[str]) -> dict[str, tuple[bytes, str]]:
    """Contents by name, with the etag that they are of; empty where the store does not say."""
    fs, root = filesystem(shard.uri)
    found = fetched(fs, root, names)
    contents = {}
    for name in names:
        with storage_errors(f"read '{join(shard.uri, readable_name(name))}'"):
            one = next(found)
            if isinstance(one, BaseException):
                raise one
            etag = object_info(one.details).etag if one.details else ""
            contents[name] = one.content, etag
    return contents


def fetched(fs: Any, root: str, names: list[str]) -> Iterator[Fetched | BaseException]:
    """Contents, or why there is none, in the order of `names`; each is the name of one file.

    Not `fs.cat` of a list, which takes names with `*`, `?` or `[` for patterns.
    """
    if is_bucket(fs):
        yield from get_objects(fs, root, names)
    elif fs.async_impl:
        paths = [join(root, name) for name in names]
        for content in fs.cat_ranges(paths, None, None, batch_size=_REQUESTS):
            yield content if isinstance(content, BaseException) else Fetched(bytes(content), {})
    else:
        for name in names:
            yield Fetched(bytes(fs.cat_file(join(root, name))), {})
