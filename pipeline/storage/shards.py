"""The shards of an input: `.tar`, `.zip` and `.parquet` files, and slices of a folder of images."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

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

FILES_PER_SHARD = 1024  # images of a folder that make one shard, unless told otherwise
_PLAIN = re.compile(r"[A-Za-z0-9._-]+\.tar")
_SLICE = re.compile(r"files-(\d{5,15})", re.ASCII)
_RESERVED = re.compile(r"(files-\d+|.*-[0-9a-f]{8}|[._].*)")


@dataclass(frozen=True)
class Shard:
    """One shard: what it is called, where it is, and the state it was listed in.

    `shard_id` depends on the path inside the input alone and is safe as a file name. `uri` is the
    shard file or, for `kind="folder"`, the input folder, of which this shard holds the files
    `names` (relative paths) of `sizes` bytes; for `kind="list"` it is the text file that names
    them, and `names` are relative to its folder, or URIs. A size of -1 is not known. `size` is in
    bytes. `etag` changes when the content does, as far as the storage tells (on a disk: size and
    modification time).
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
        """`uri` as the table has it: bytes that are not UTF-8 are written as `\\xNN`."""
        return readable_name(self.uri)

    @property
    def is_slice(self) -> bool:
        """Whether the shard is a run of files of a folder or list, and no file itself."""
        return self.kind in ("folder", "list")

    @property
    def keys(self) -> tuple[str, ...]:
        """Of each of a folder's files the key of its sample: its name, made readable.

        Unique: the bytes `\\xff` and the four letters for them read alike.
        """
        unique = UniqueKeys()
        return tuple(unique.take(readable_name(name)) for name in self.names)

    def uri_of(self, name: str) -> str:
        """The URI of one of `names`."""
        return uri_in(self.kind, self.uri, name)

    def to_json(self) -> str:
        """The shard as a line of ASCII JSON, whatever bytes its names are made of."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Shard:
        """The shard that `to_json` wrote."""
        fields: dict[str, Any] = json.loads(text)
        fields["names"] = tuple(fields["names"])
        fields["sizes"] = tuple(fields["sizes"])
        return cls(**fields)


def slice_id(number: int) -> str:
    """The id of a folder's slice of images."""
    return f"files-{number:05d}"


def slice_number(shard_id: str) -> int | None:
    """Which slice has this id; None if none has."""
    match = _SLICE.fullmatch(shard_id)
    return int(match[1]) if match and slice_id(int(match[1])) == shard_id else None


class ShardListing(Iterator[Shard]):
    """The shards of an input, and in `left_out` what was passed over on the way to them so far.

    `kept` are the types of the fields to carry over, where `kept_types` was asked for them.
    """

    def __init__(self, shards: Iterator[Shard], left_out: LeftOut) -> None:
        self._shards, self.left_out = shards, left_out
        self.kept: Mapping[str, str] = {}

    def __next__(self) -> Shard:
        return next(self._shards)

    def first(self) -> Shard:
        """The next shard, which stays the next one. Raises as `list_shards` says."""
        shard = next(self._shards)
        self._shards = itertools.chain([shard], self._shards)
        return shard


def list_shards(
    input_uri: str,
    *,
    files_per_shard: int = FILES_PER_SHARD,
    options: ReadOptions | None = None,
) -> ShardListing:
    """The shards of `input_uri`, in the order of their paths, as the listing goes.

    The input is one shard file, one image, a folder with shards or images or both at any depth, a
    text file of these, or a pattern (`open_input`). Images are cut into slices of
    `files_per_shard`, of a folder in the order of their relative paths; adding a file changes the
    slices after it. What is neither, by its name or its first bytes (`recognise`), is counted in
    `left_out`, complete at the end, and so are hidden files and img2dataset's own metadata.

    Raises `InputError` if the input does not exist or holds nothing of these, on the first
    `next()`, and if its URI or a shard's contains a credential (`refuse_secrets`).
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
    seen: set[str] = set()
    imageless: list[str] = []
    found = _shards_of(source, files_per_shard, options, left_out, imageless)
    for shard in found:
        if shard.shard_id in seen:
            raise InputError(f"two shards of '{root}' have the id '{shard.shard_id}'; rename one")
        refuse_secrets(f"a shard's name in '{root}'", shard.uri, shard.shard_id, secrets=secrets)
        seen.add(shard.shard_id)
        yield shard
    if not seen:
        for uri in imageless:  # says which columns there are
            image_column(schema_of(uri) or pa.schema([]), uri, options.image_column)
        there = f" ({left_out.summary()})" if left_out else ""
        hint = NO_LISTING if is_web(root) else LOOKED_FOR
        raise InputError(f"the input '{root}' holds nothing to read{there}; {hint}")


def shard_id_of(relative_path: str) -> str:
    """The id of the shard file at `relative_path` inside the input (its name, if it is the input).

    The stem of a plain `name.tar` in the input's top folder; else the path made safe, with eight
    hex digits of its SHA-256, so that `a/0.tar`, `b/0.tar` and `0.tar.gz` never share an id. None
    begins with `_` or `.`: whoever reads a whole folder passes over such files without a word.
    """
    stem = shard_stem(relative_path)
    if _PLAIN.fullmatch(relative_path) and not _RESERVED.fullmatch(stem) and len(stem) <= 100:
        return stem
    digest = hashlib.sha256(relative_path.encode("utf-8", "surrogateescape")).hexdigest()
    safe = re.sub(r"[^A-Za-z0-9._]+", "-", stem)[-80:].strip("-._") or "shard"
    return f"{safe}-{digest[:8]}"


def _shards_of(
    source: Source,
    length: int,
    options: ReadOptions,
    left_out: LeftOut,
    imageless: list[str],
) -> Iterator[Shard]:
    images: list[Entry] = []
    slices = 0
    found = recognise(
        source.entries,
        source.uri_of,
        left_out,
        sniffing=options.sniff,
        alone=source.alone,
        imageless=imageless,
    )
    for entry, kind in found:
        if kind == "image":
            images.append(entry)
        else:
            uri, size = source.uri_of(entry.name), max(0, entry.size)
            if source.alone and entry.etag == UNREADABLE:
                raise InputError(f"the input '{source.uri_of(entry.name)}' may not be read")
            yield Shard(shard_id_of(entry.name), uri, kind, size, entry.etag)
        if len(images) == length:
            yield _slice(source, images, slices)
            images, slices = [], slices + 1
    if images:
        yield _slice(source, images, slices)


def folder_etag(entries: Iterable[Entry]) -> str:
    """What changes when one of the files does."""
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
