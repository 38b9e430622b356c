"""The shards of an input: `.tar`, `.zip` and `.parquet` files, and slices of a folder of images."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.errors import InputError, StorageError
from pipeline.storage.columns import has_bytes, schema_of
from pipeline.storage.formats import Kind, is_image, readable_name, shard_kind, shard_stem
from pipeline.storage.listing import Entry, file_entry, is_folder, walk
from pipeline.storage.sample import UniqueKeys
from pipeline.storage.uris import canonical_uri, filesystem, join, known_secrets, refuse_secrets

FILES_PER_SHARD = 1024  # images of a folder that make one shard, unless told otherwise
_PLAIN = re.compile(r"[A-Za-z0-9._-]+\.tar")
_SLICE = re.compile(r"files-(\d{5,15})", re.ASCII)
_RESERVED = re.compile(r"(files-\d+|.*-[0-9a-f]{8}|[._].*)")
_LOOKED_FOR = (
    "looked for .tar, .tar.gz (.bz2, .xz, .zst), .zip and .parquet shards, and for image files, "
    "at any depth"
)


_NO_PATTERN = "one folder or file is taken, and no pattern: name the folder"


@dataclass(frozen=True)
class Shard:
    """One shard: what it is called, where it is, and the state it was listed in.

    `shard_id` depends on the path inside the input alone and is safe as a file name. `uri` is the
    shard file or, for `kind="folder"`, the input folder, of which this shard holds the files
    `names` (relative paths) of `sizes` bytes. `size` is in bytes. `etag` changes when the content
    does, as far as the storage tells (on a disk: size and modification time).
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
    def keys(self) -> tuple[str, ...]:
        """Of each of a folder's files the key of its sample: its name, made readable.

        Unique: the bytes `\\xff` and the four letters for them read alike.
        """
        unique = UniqueKeys()
        return tuple(unique.take(readable_name(name)) for name in self.names)

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


def list_shards(input_uri: str, *, files_per_shard: int = FILES_PER_SHARD) -> Iterator[Shard]:
    """The shards of `input_uri`, in the order of their paths, as the listing goes.

    The input is one shard file, one image, or a folder with shards or images or both at any
    depth. Images of a folder are cut into slices of `files_per_shard` in the order of their
    relative paths; adding a file to the folder changes the slices after it. Hidden files are left
    out, and so is img2dataset's own metadata (`without_metadata`). Raises `InputError` if
    the input does not exist or holds nothing of these, on the first `next()`, and if its URI or a
    shard's contains a credential (`refuse_secrets`).
    """
    root = canonical_uri(input_uri)
    secrets = known_secrets()
    refuse_secrets("the input's URI", root, secrets=secrets)
    fs, path = filesystem(root)
    folder = _exists_as_folder(fs, path, root)
    seen: set[str] = set()
    for shard in _folder_shards(fs, path, root, files_per_shard) if folder else _one_file(root):
        if shard.shard_id in seen:
            raise InputError(f"two shards of '{root}' have the id '{shard.shard_id}'; rename one")
        refuse_secrets(f"a shard's name in '{root}'", shard.uri, shard.shard_id, secrets=secrets)
        seen.add(shard.shard_id)
        yield shard
    if not seen:
        raise InputError(f"the input '{root}' holds nothing to read; {_LOOKED_FOR}")


def _exists_as_folder(fs: Any, path: str, root: str) -> bool:
    try:
        return is_folder(fs, path, root)
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            hint = _NO_PATTERN if re.search(r"[*?]", root) else _LOOKED_FOR
            raise InputError(f"the input '{root}' does not exist; {hint}") from error
        raise


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


def _one_file(uri: str) -> Iterator[Shard]:
    entry = file_entry(uri)
    name = uri.rsplit("/", 1)[-1]
    kind = shard_kind(name)
    if kind:
        yield Shard(shard_id_of(name), uri, kind, entry.size, entry.etag)
    elif is_image(name):
        yield _slice(uri.rsplit("/", 1)[0], [Entry(name, entry.size, entry.etag)], 0)


def _folder_shards(fs: Any, path: str, root: str, length: int) -> Iterator[Shard]:
    images: list[Entry] = []
    slices = 0

    def holds_images(entry: Entry) -> bool:
        schema = schema_of(join(root, entry.name))
        return schema is None or has_bytes(schema)

    for entry in without_metadata(walk(fs, path, root), holds_images):
        kind = shard_kind(entry.name)
        if kind:
            uri = join(root, entry.name)
            yield Shard(shard_id_of(entry.name), uri, kind, entry.size, entry.etag)
        elif is_image(entry.name):
            images.append(entry)
        if len(images) == length:
            yield _slice(root, images, slices)
            images, slices = [], slices + 1
    if images:
        yield _slice(root, images, slices)


def without_metadata(
    entries: Iterable[Entry], holds_images: Callable[[Entry], bool]
) -> Iterator[Entry]:
    """The sorted `entries`, but for what img2dataset writes beside its images: their URLs and
    captions.

    That is an `x.parquet` beside an `x.tar`, or one that does not hold images beside a folder `x`.
    An `x.parquet` is given out behind what may be its tar, or before what is in the folder.
    """
    waiting: Entry | None = None
    for entry in entries:
        if waiting:
            stem = shard_stem(waiting.name)
            if shard_kind(entry.name) == "tar" and shard_stem(entry.name) == stem:
                waiting = None
            elif entry.name > f"{stem}/":
                if not entry.name.startswith(f"{stem}/") or holds_images(waiting):
                    yield waiting
                waiting = None
        if shard_kind(entry.name) != "parquet":
            yield entry
            continue
        if waiting:
            yield waiting
        waiting = entry
    if waiting:
        yield waiting


def folder_etag(entries: Iterable[Entry]) -> str:
    """What changes when one of the files does."""
    digest = hashlib.sha256()
    for entry in entries:
        line = f"{readable_name(entry.name)}\0{entry.size}\0{entry.etag}\n"
        digest.update(line.encode())
    return digest.hexdigest()[:32]


def _slice(root: str, entries: list[Entry], index: int) -> Shard:
    return Shard(
        shard_id=slice_id(index),
        uri=root,
        kind="folder",
        size=sum(entry.size for entry in entries),
        etag=folder_etag(entries),
        names=tuple(entry.name for entry in entries),
        sizes=tuple(entry.size for entry in entries),
    )
