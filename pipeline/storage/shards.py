"""List the shards of an input: tar, zip and Parquet files, and slices of a folder of images."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import pyarrow as pa

from pipeline.errors import InputError
from pipeline.redaction import known_secrets
from pipeline.storage.file_types import Kind, readable_name, shard_stem
from pipeline.storage.input_files import LOOKED_FOR, NO_LISTING, Source, open_input, uri_in
from pipeline.storage.left_out import LeftOut
from pipeline.storage.listing import Entry
from pipeline.storage.objects import UNREADABLE
from pipeline.storage.parquet_columns import image_column, schema_of
from pipeline.storage.read_options import ReadOptions
from pipeline.storage.recognition import recognise
from pipeline.storage.sample import UniqueKeys
from pipeline.storage.uris import canonical_uri, is_web, refuse_secrets

FILES_PER_SHARD = 1024  # default number of images in a slice of a folder
_PLAIN = re.compile(r"[A-Za-z0-9._-]+\.tar")
_SLICE = re.compile(r"files-(\d{5,15})", re.ASCII)
_RESERVED = re.compile(r"(files-\d+|.*-[0-9a-f]{8}|[._].*)")


@dataclass(frozen=True)
class Shard:
    """A shard file or a slice of a folder, with the size and etag that it was listed with.

    `shard_id` depends only on the path inside the input and is safe as a file name. `uri` is the
    shard file. For `kind="folder"` it is the input folder, and the shard holds the files `names`
    (relative paths) of `sizes` bytes. For `kind="list"` it is the text file that names them, and
    `names` are relative to its folder, or URIs. Sizes are in bytes, -1 if unknown. `etag` changes
    with the content, as far as the storage reports it (on a disk: size and modification time).
    """

    shard_id: str
    uri: str
    kind: Kind
    size: int
    etag: str
    names: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()

    @property
    def source(self) -> str:
        """Return `uri` as the table stores it: bytes that are not UTF-8 are written as `\\xNN`."""
        return readable_name(self.uri)

    @property
    def is_slice(self) -> bool:
        """Return whether the shard is a slice of a folder or list, not one shard file."""
        return self.kind in ("folder", "list")

    @property
    def keys(self) -> tuple[str, ...]:
        """Return the key of each file of a slice: its name, made readable and unique.

        Two names may read alike: the byte `\\xff`, and the four characters that it is written as.
        """
        unique = UniqueKeys()
        return tuple(unique.take(readable_name(name)) for name in self.names)

    def uri_of(self, name: str) -> str:
        """Return the URI of a file of the slice."""
        return uri_in(self.kind, self.uri, name)


def slice_id(number: int) -> str:
    """Return the id of a folder's slice of images."""
    return f"files-{number:05d}"


def slice_number(shard_id: str) -> int | None:
    """Return the number of the slice with this id; None for the id of a shard file."""
    match = _SLICE.fullmatch(shard_id)
    return int(match[1]) if match and slice_id(int(match[1])) == shard_id else None


class ShardListing(Iterator[Shard]):
    """Iterator over the shards of an input; `left_out` counts the files skipped so far.

    `kept` maps the names of kept columns to their types (`kept_types`); it is set by the caller.
    """

    def __init__(self, shards: Iterator[Shard], left_out: LeftOut) -> None:
        self._shards, self.left_out = shards, left_out
        self.kept: Mapping[str, str] = {}

    def __next__(self) -> Shard:
        return next(self._shards)

    def first(self) -> Shard:
        """Return the next shard without consuming it. Raises the errors of `list_shards`."""
        shard = next(self._shards)
        self._shards = itertools.chain([shard], self._shards)
        return shard


def list_shards(
    input_uri: str,
    *,
    files_per_shard: int = FILES_PER_SHARD,
    options: ReadOptions | None = None,
) -> ShardListing:
    """List the shards of `input_uri` lazily, in the order of their paths.

    The input is one shard file, one image, a folder with shards or images at any depth, a text
    file of these, or a pattern (`open_input`). Images are grouped into slices of `files_per_shard`,
    in a folder in the order of their relative paths; adding a file changes the slices after it.
    Files that are neither by name nor by first bytes (`recognise`), hidden files and img2dataset's
    own metadata are counted in `left_out`, which is complete at the end.

    The first `next()` raises `InputError` if the input does not exist or holds nothing to read.
    `InputError` is also raised if its URI or a shard's contains a credential (`refuse_secrets`).
    """
    left_out = LeftOut()
    shards = _listed(input_uri, files_per_shard, options or ReadOptions(), left_out)
    return ShardListing(shards, left_out)


def _listed(
    input_uri: str, files_per_shard: int, options: ReadOptions, left_out: LeftOut
) -> Iterator[Shard]:
    root = canonical_uri(input_uri)
    secrets = known_secrets()
    refuse_secrets("the input's URI", root, secrets=secrets)
    source = open_input(root, left_out)
    ids: set[str] = set()
    imageless: list[str] = []
    for shard in _shards_of(source, files_per_shard, options, left_out, imageless):
        if shard.shard_id in ids:
            raise InputError(f"two shards of '{root}' have the id '{shard.shard_id}'; rename one")
        refuse_secrets(f"a shard's name in '{root}'", shard.uri, shard.shard_id, secrets=secrets)
        ids.add(shard.shard_id)
        yield shard
    if not ids:
        for uri in imageless:  # raises an error that names the columns
            image_column(schema_of(uri) or pa.schema([]), uri, options.image_column)
        skipped = f" ({left_out.summary()})" if left_out else ""
        hint = NO_LISTING if is_web(root) else LOOKED_FOR
        raise InputError(f"the input '{root}' holds nothing to read{skipped}; {hint}")


def shard_id_of(relative_path: str) -> str:
    """Return the id of the shard file at `relative_path` inside the input.

    For an input that is one shard file the path is its name. The id is the stem of a plain
    `name.tar` in the input's top folder. Other paths are made safe and followed by eight hex digits
    of their SHA-256, so that `a/0.tar`, `b/0.tar` and `0.tar.gz` never share an id. No id begins
    with `_` or `.`: readers of a whole folder silently skip such files.
    """
    stem = shard_stem(relative_path)
    if _PLAIN.fullmatch(relative_path) and not _RESERVED.fullmatch(stem) and len(stem) <= 100:
        return stem
    digest = hashlib.sha256(relative_path.encode("utf-8", "surrogateescape")).hexdigest()
    safe = re.sub(r"[^A-Za-z0-9._]+", "-", stem)[-80:].strip("-._") or "shard"
    return f"{safe}-{digest[:8]}"


def _shards_of(
    source: Source,
    files_per_shard: int,
    options: ReadOptions,
    left_out: LeftOut,
    imageless: list[str],
) -> Iterator[Shard]:
    images: list[Entry] = []
    slices = 0
    for entry, kind in recognise(source, left_out, sniffing=options.sniff, imageless=imageless):
        if kind == "image":
            images.append(entry)
        else:
            uri, size = source.uri_of(entry.name), max(0, entry.size)
            if source.alone and entry.etag == UNREADABLE:
                raise InputError(f"the input '{uri}' cannot be read: permission denied")
            yield Shard(shard_id_of(entry.name), uri, kind, size, entry.etag)
        if len(images) == files_per_shard:
            yield _slice(source, images, slices)
            images, slices = [], slices + 1
    if images:
        yield _slice(source, images, slices)


def folder_etag(entries: Iterable[Entry]) -> str:
    """Return a digest that changes with the name, size or etag of any of the files."""
    digest = hashlib.sha256()
    for entry in entries:
        line = f"{readable_name(entry.name)}\0{entry.size}\0{entry.etag}\n"
        digest.update(line.encode())
    return digest.hexdigest()[:32]


def _slice(source: Source, entries: list[Entry], index: int) -> Shard:
    return Shard(
        shard_id=slice_id(index),
        uri=source.uri,
        kind=source.kind,
        size=sum(max(0, entry.size) for entry in entries),
        etag=folder_etag(entries),
        names=tuple(entry.name for entry in entries),
        sizes=tuple(entry.size for entry in entries),
    )
