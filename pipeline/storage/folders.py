"""Samples out of a slice of a folder listing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipeline.errors import StorageError
from pipeline.storage.buckets import get_objects, is_bucket
from pipeline.storage.formats import readable_name
from pipeline.storage.sample import MAX_SAMPLE_BYTES, Sample, too_large
from pipeline.storage.shards import Shard
from pipeline.storage.uris import filesystem, join, storage_errors

# Requests in flight against an object store, and the bytes that may wait in memory for their turn.
_REQUESTS = 16
_BYTES_AHEAD = 64 << 20


def read_folder(shard: Shard) -> Iterator[Sample]:
    """One sample a file; the key is the path relative to the input, with its extension."""
    for group in _groups(shard):
        contents = _contents(shard, [name for name, size in group if size <= MAX_SAMPLE_BYTES])
        for name, size in group:
            key = readable_name(name)
            uri = join(shard.source, key)
            if name in contents:
                content = contents.pop(name)
                if len(content) != size:
                    raise StorageError(f"'{uri}' changed while it was read; run again")
                yield Sample(key, uri, content)
            else:
                yield too_large(key, uri, size)


def _groups(shard: Shard) -> Iterator[list[tuple[str, int]]]:
    """Runs of files that are fetched together."""
    group: list[tuple[str, int]] = []
    total = 0
    for name, size in zip(shard.names, shard.sizes, strict=True):
        if group and (len(group) == _REQUESTS or total + size > _BYTES_AHEAD):
            yield group
            group, total = [], 0
        group.append((name, size))
        total += size
    if group:
        yield group


def _contents(shard: Shard, names: list[str]) -> dict[str, bytes]:
    fs, root = filesystem(shard.uri)
    found = _fetched(fs, root, names)
    contents = {}
    for name in names:
        with storage_errors(f"read '{join(shard.uri, readable_name(name))}'"):
            content = next(found)
            if isinstance(content, BaseException):
                raise content
            contents[name] = content
    return contents


def _fetched(fs: Any, root: str, names: list[str]) -> Iterator[bytes | BaseException]:
    """Contents, or why there is none, in the order of `names`; each is the name of one file.

    Not `fs.cat` of a list, which takes names with `*`, `?` or `[` for patterns.
    """
    if is_bucket(fs):
        yield from get_objects(fs, root, names)
    elif fs.async_impl:
        paths = [join(root, name) for name in names]
        yield from fs.cat_ranges(paths, None, None, batch_size=_REQUESTS)
    else:
        for name in names:
            yield bytes(fs.cat_file(join(root, name)))
