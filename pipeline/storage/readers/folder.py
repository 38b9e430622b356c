"""Read the samples of a slice of a folder, or of a list of files."""

from __future__ import annotations

import os
from collections.abc import Container, Iterator, Sequence
from typing import Any

from pipeline.errors import StorageError
from pipeline.storage.credentials import is_denied
from pipeline.storage.file_types import readable_name
from pipeline.storage.listing import UNKNOWN_SIZE, Entry, file_entry
from pipeline.storage.objects import UNREADABLE, why_unreadable
from pipeline.storage.s3 import Fetched, can_read_siblings, get_objects, is_bucket
from pipeline.storage.sample import MAX_SAMPLE_BYTES, Sample, too_large, unreadable
from pipeline.storage.shards import Shard, folder_etag
from pipeline.storage.uris import filesystem, is_local_filesystem, join, storage_errors

# Parallel requests to an object store, and the bytes that they may hold in memory.
_REQUESTS = 16
_BYTES_AHEAD = 64 << 20


def read_folder(shard: Shard, keys: Container[str] | None = None) -> Iterator[Sample]:
    """Yield one sample per file, or per file with one of `keys`; other files are not fetched.

    A file that later runs cannot read either is a sample with the reject `unreadable`. S3 returns
    an etag with each file: if those of a whole shard do not match the listing, `StorageError` is
    raised at the end. Files of other storages are compared by size.
    """
    etag_of_all = shard.etag if keys is None else ""
    read: list[Entry] = []
    for group in _groups(shard, keys):
        contents = _contents(shard, [name for _, name, size in group if size <= MAX_SAMPLE_BYTES])
        for key, name, size in group:
            uri = readable_name(shard.uri_of(name))
            content, etag, why_not = contents.pop(name, Fetched(b""))
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


def _groups(shard: Shard, keys: Container[str] | None) -> Iterator[list[tuple[str, str, int]]]:
    """Yield groups of files, each as key, name and size, that are fetched together."""
    group: list[tuple[str, str, int]] = []
    total = 0
    for key, name, size in zip(shard.keys, shard.names, shard.sizes, strict=True):
        if keys is not None and key not in keys:
            continue
        if group and (len(group) == _REQUESTS or total + size > _BYTES_AHEAD):
            yield group
            group, total = [], 0
        group.append((key, name, size))
        total += max(0, size)
    if group:
        yield group


def _contents(shard: Shard, names: Sequence[str]) -> dict[str, Fetched]:
    """Fetch files and return them by name."""
    contents = {}
    for root, paths in group_by_root(shard, names).items():
        fs, root_path = filesystem(root)
        results = fetch_files(fs, root_path, [*paths])
        for path, name in paths.items():
            with storage_errors(f"read '{readable_name(shard.uri_of(name))}'"):
                result = next(results)
                if isinstance(result, Fetched):
                    contents[name] = result
                    continue
                why_not = _why_unreadable(fs, join(root_path, path), result, shard.kind)
                if not why_not:
                    raise result
                # A missing object has the etag of the listing; a denied one has none, and then
                # the etags of the shard are not compared.
                gone = is_bucket(fs) and isinstance(result, FileNotFoundError)
                contents[name] = Fetched(b"", UNREADABLE if gone else "", why_not)
    return contents


def group_by_root(shard: Shard, names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Group files by the root of their storage: the input folder, the disk, a bucket or a host.

    Returns root -> path below the root -> name in the shard.
    """
    if shard.kind == "folder":
        return {shard.uri: {name: name for name in names}}
    groups: dict[str, dict[str, str]] = {}
    for name in names:
        uri = shard.uri_of(name)
        scheme, _, rest = uri.partition("://")
        host, _, path = rest.partition("/")
        root, path = ("/", uri[1:]) if uri.startswith("/") else (f"{scheme}://{host}", path)
        groups.setdefault(root, {})[path] = name
    return groups


def _why_unreadable(fs: Any, path: str, error: BaseException, kind: str) -> str:
    """Return why later runs cannot read the file either; empty if they may.

    A missing file counts only in a list: in a folder it was listed, so that the input has changed.
    """
    if is_local_filesystem(fs) and isinstance(error, OSError):
        why = why_unreadable(path, error)
        if why:
            return why
    if is_denied(error) and is_bucket(fs) and can_read_siblings(fs, path):
        return "access denied"
    return "nothing is there" if kind == "list" and isinstance(error, FileNotFoundError) else ""


def fetch_files(fs: Any, root: str, names: list[str]) -> Iterator[Fetched | BaseException]:
    """Fetch files below `root`; yield the content or the exception of each, in order.

    `fs.cat` of a list would treat names with `*`, `?` or `[` as patterns.
    """
    if is_bucket(fs):
        yield from get_objects(fs, root, names)
    elif fs.async_impl:
        paths = [join(root, name) for name in names]
        for content in fs.cat_ranges(paths, None, None, batch_size=_REQUESTS):
            yield content if isinstance(content, BaseException) else Fetched(bytes(content))
    else:
        for name in names:
            try:
                yield Fetched(_read_whole(fs, join(root, name)))
            except OSError as error:
                yield error


def _read_whole(fs: Any, path: str) -> bytes:
    """Read a file. A `path` that ends in "/" is a folder that could not be listed."""
    if is_local_filesystem(fs) and path.endswith("/"):
        with os.scandir(path):
            raise StorageError(f"the folder '{path}' has become readable: run again")
    return bytes(fs.cat_file(path))
