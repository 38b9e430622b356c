"""Samples out of a slice of a folder listing, or of a list of files."""

from __future__ import annotations

import os
from collections.abc import Container, Iterator, Sequence
from itertools import starmap
from typing import Any, NamedTuple

from pipeline.errors import StorageError
from pipeline.storage.credentials import is_denied
from pipeline.storage.file_types import readable_name
from pipeline.storage.listing import UNKNOWN_SIZE, Entry, file_entry
from pipeline.storage.objects import UNREADABLE, object_info, why_unreadable
from pipeline.storage.s3 import Fetched, can_read_siblings, get_objects, is_bucket
from pipeline.storage.sample import MAX_SAMPLE_BYTES, Sample, too_large, unreadable
from pipeline.storage.shards import Shard, folder_etag
from pipeline.storage.uris import filesystem, is_local_filesystem, join, storage_errors

# Requests in flight against an object store, and the bytes that may wait in memory for their turn.
_REQUESTS = 16
_BYTES_AHEAD = 64 << 20


class _File(NamedTuple):
    key: str
    name: str
    size: int


class _Content(NamedTuple):
    """A file's bytes and the etag that they are of, or why it has none."""

    content: bytes
    etag: str
    why_not: str = ""


def read_folder(shard: Shard, keys: Container[str] | None = None) -> Iterator[Sample]:
    """One sample a file, or of those with `keys`; the others are not fetched.

    A file that cannot be read, whoever tries again, is a sample with the reject `unreadable`.
    S3 says with each file what state it is of: where they are not the shard's, `StorageError` at
    the end; not of a part of the files, for which there is no etag. Other stores' files are
    compared by size.
    """
    etag_of_all = shard.etag if keys is None else ""
    read: list[Entry] = []
    for group in _groups(shard, keys):
        contents = _contents(shard, [name for _, name, size in group if size <= MAX_SAMPLE_BYTES])
        for key, name, size in group:
            uri = readable_name(shard.uri_of(name))
            content, etag, why_not = contents.pop(name, _Content(b"", "", ""))
            if why_not:
                yield unreadable(key, uri, why_not)
            elif size > MAX_SAMPLE_BYTES or len(content) > MAX_SAMPLE_BYTES:
                etag = etag or (file_entry(shard.uri_of(name)).etag if etag_of_all else "")
                yield too_large(key, uri, max(size, len(content)))
            elif len(content) != size != UNKNOWN_SIZE:
                raise StorageError(f"'{uri}' changed while it was read; run again")
            else:
                yield Sample(key, uri, content)
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
        total += max(0, file.size)
    if group:
        yield group


def _contents(shard: Shard, names: Sequence[str]) -> dict[str, _Content]:
    """Contents by name, with the etag that they are of; empty where the store does not say."""
    contents = {}
    for root, paths in by_root(shard, names).items():
        fs, place = filesystem(root)
        found = fetched(fs, place, [*paths])
        for path, name in paths.items():
            with storage_errors(f"read '{readable_name(shard.uri_of(name))}'"):
                one = next(found)
                if isinstance(one, Fetched):
                    etag = object_info(one.details).etag if one.details else ""
                    contents[name] = _Content(one.content, etag)
                    continue
                why_not = _why_unreadable(fs, join(place, path), one, shard.kind)
                if not why_not:
                    raise one
                # Of a bucket all files' etags are known, or the state of none is compared.
                gone = is_bucket(fs) and isinstance(one, FileNotFoundError)
                contents[name] = _Content(b"", UNREADABLE if gone else "", why_not)
    return contents


def by_root(shard: Shard, names: Sequence[str]) -> dict[str, dict[str, str]]:
    """The files' paths below the folder, the disk, or their buckets and hosts; with their names."""
    if shard.kind == "folder":
        return {shard.uri: {name: name for name in names}}
    found: dict[str, dict[str, str]] = {}
    for name in names:
        uri = shard.uri_of(name)
        scheme, _, rest = uri.partition("://")
        host, _, path = rest.partition("/")
        root, path = ("/", uri[1:]) if uri.startswith("/") else (f"{scheme}://{host}", path)
        found.setdefault(root, {})[path] = name
    return found


def _why_unreadable(fs: Any, path: str, error: BaseException, kind: str) -> str:
    """What to say of a file that a later run would not read either; empty where that may pass.

    What was found in a folder and is gone has changed; what only a list names was never there.
    """
    if is_local_filesystem(fs) and isinstance(error, OSError):
        why = why_unreadable(path, error)
        if why:
            return why
    if is_denied(error) and is_bucket(fs) and can_read_siblings(fs, path):
        return "access denied"
    return "nothing is there" if kind == "list" and isinstance(error, FileNotFoundError) else ""


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
            try:
                yield Fetched(_whole(fs, join(root, name)), {})
            except OSError as error:
                yield error


def _whole(fs: Any, path: str) -> bytes:
    """The bytes of a file. Of what was a folder nothing could list, as `path` ends in "/"."""
    if is_local_filesystem(fs) and path.endswith("/"):
        with os.scandir(path):
            raise StorageError(f"'{path}' can be listed since the input was: run again")
    return bytes(fs.cat_file(path))
