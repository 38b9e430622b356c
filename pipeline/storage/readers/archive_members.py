"""Choose the samples among the members of a tar or zip.

webdataset stores a sample as adjacent members that share a key: the path up to the first dot of its
last component. The rest of the name is the field: `jpg`, `seg.png` or `json`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

from pipeline.storage.file_types import is_hidden, is_image, may_be_image, sniff, stem_of
from pipeline.storage.kept_columns import MAX_FIELD_BYTES, fields_of
from pipeline.storage.left_out import LeftOut, label_of
from pipeline.storage.read_options import ALL_IMAGES, ReadOptions
from pipeline.storage.sample import MAX_SAMPLE_BYTES, Sample, UniqueKeys, too_large
from pipeline.storage.uris import join

START_BYTES = 1024
_BMP_HEADERS = {size.to_bytes(4, "little") for size in (12, 16, 40, 52, 56, 64, 108, 124)}
# Limits for the members of one key in memory, while more of them may follow.
_HELD_IMAGES, _HELD_BYTES, _HELD_SIDECARS = 16, 64 << 20, 64
_FIELD = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*", re.ASCII)
_NUMBERED = re.compile(r"v?\d+", re.ASCII)
_MAX_LABEL_LENGTH = 32


@dataclass
class Member:
    """A file of an archive.

    `read(None)` returns the content, `read(n)` its first `n` bytes, both before the next member is
    requested; they may raise `UnreadableError`. `refusal` says why the content is not read, as the
    detail of an `unsupported_format` reject; empty if it can be. `values` are fields that the
    archive itself stores for the image.
    """

    name: str  # readable, without a leading "./"
    size: int
    read: Callable[[int | None], bytes]
    refusal: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)


class UnreadableError(Exception):
    """Content of one member that cannot be read, with the reason as message."""


@dataclass(frozen=True, eq=False)
class _Held:
    """An image in memory, until all members of its key are known."""

    member: Member
    image_field: str
    sample: Sample  # key and fields are set later

    @property
    def is_dotted(self) -> bool:
        """Return whether dots are part of the name, as in `IMG.1.jpg`, `J. Doe.jpg`, `a.jpg.1`.

        webdataset does not restrict the names of fields, but its programs write none like these.
        """
        parts = self.image_field.split(".")
        numbered = any(_NUMBERED.fullmatch(part) for part in (parts[0], parts[-1]))
        is_field = _FIELD.fullmatch(self.image_field) and not numbered
        return not _is_plain(self.image_field) and not is_field


@dataclass
class _Group:
    """Adjacent members of one key."""

    key: str = ""
    named: bool = False  # a member's name is the key and one extension
    taken: bool = False  # the key's one image has been yielded
    fields: set[str] = field(default_factory=set)  # those of the images
    held: list[_Held] = field(default_factory=list)
    sidecars: dict[str, bytes] = field(default_factory=dict)

    @property
    def is_full(self) -> bool:
        """Return whether the images in memory reach a limit."""
        size = sum(held.member.size for held in self.held)
        return len(self.held) > 1 and (len(self.held) > _HELD_IMAGES or size > _HELD_BYTES)


def samples_of(
    members: Iterator[Member],
    source: str,
    options: ReadOptions,
    left_out: LeftOut,
    *,
    content: bool = True,
) -> Iterator[Sample]:
    """Yield the images among the `members` of the archive `source` as samples, in their order.

    The key is the member's path without its image extension; if that is taken, the whole path; if
    that is taken too (one path stored twice), the path followed by `~2`, `~3`, .... Other members
    are counted in `left_out`. Memory holds the images of one key, at most 16 or 64 MiB. An
    exception of `members` is raised after the samples before it. Without `content` the samples are
    empty, for counting.
    """
    chooser = _Chooser(source, options, left_out, content=content)
    try:
        for member in members:
            yield from chooser.add(member)
    except Exception:
        yield from chooser.finish()
        raise
    yield from chooser.finish()


def split_name(name: str) -> tuple[str, str]:
    """Return webdataset's key and field of a member, the field in lower case."""
    folder, slash, base = name.rpartition("/")
    stem, _, image_field = base.partition(".")
    return folder + slash + stem, image_field.lower()


def _is_plain(image_field: str) -> bool:
    """Return whether a member's name is the key and one extension."""
    return "." not in image_field and not _NUMBERED.fullmatch(image_field)


class _Chooser:
    """Group members by key, and yield the samples of each complete group."""

    def __init__(
        self, source: str, options: ReadOptions, left_out: LeftOut, *, content: bool
    ) -> None:
        self._source, self._options, self._left_out = source, options, left_out
        self._content = content
        self._image_fields = options.image_fields  # empty: any image
        self._all = options.image_field == ALL_IMAGES
        self._keys = UniqueKeys()
        self._group = _Group()

    def add(self, member: Member) -> Iterator[Sample]:
        """Add the next member, and yield the samples that are complete then."""
        if is_hidden(member.name):
            self._left_out.add_file(member.name)
            return
        key, image_field = split_name(member.name)
        is_image_member = self._is_image(member, image_field)
        if key != self._group.key or (is_image_member and image_field in self._group.fields):
            yield from self.finish()
            self._group.key = key
        if is_image_member:
            self._hold(member, image_field)
        else:
            self._add_sidecar(member, image_field)
        yield from self._overflow()

    def finish(self) -> Iterator[Sample]:
        """Yield the samples of the complete group, and begin an empty one."""
        group, self._group = self._group, _Group()
        yield from self._samples(group, self._choose(group))

    def _is_image(self, member: Member, image_field: str) -> bool:
        if self._image_fields:
            return image_field in self._image_fields
        if is_image(member.name):
            return True
        if not self._options.sniff or member.refusal or not may_be_image(member.name):
            return False
        try:
            return is_image_start(member.read(START_BYTES))
        except UnreadableError:
            return False

    def _hold(self, member: Member, image_field: str) -> None:
        self._group.fields.add(image_field)
        self._group.named |= _is_plain(image_field)
        sample = _sample_of(member, self._source) if self._content else Sample("", "", b"")
        self._group.held.append(_Held(member, image_field, sample))

    def _add_sidecar(self, member: Member, image_field: str) -> None:
        group, names = self._group, self._options.keep_columns
        group.named |= bool(image_field) and _is_plain(image_field)
        suffix = image_field.rsplit(".", 1)[-1]
        kept = bool(names) and (suffix == "json" or suffix in names or image_field in names)
        if kept and member.size <= MAX_FIELD_BYTES and len(group.sidecars) < _HELD_SIDECARS:
            try:
                content = b"" if member.refusal else member.read(None)
            except UnreadableError:
                content = b""
            stem = member.name[: len(member.name) - len(suffix)]
            group.sidecars[f"{group.key}.{image_field}"] = group.sidecars[stem + suffix] = content
        elif self._image_fields and is_image(member.name):
            self._left_out.add(_label(member.name, image_field))
        else:
            self._left_out.add_file(member.name)

    def _overflow(self) -> Iterator[Sample]:
        """Yield the samples that need not, or must not, stay in memory."""
        group = self._group
        if self._all and not self._options.keep_columns:
            group.held, held = [], group.held
            yield from self._samples(group, held)
            return
        while group.is_full:
            group.held = self._choose(group)
            if group.is_full:
                oldest, *group.held = group.held
                group.taken |= group.named and not oldest.is_dotted
                yield from self._samples(group, [oldest])

    def _choose(self, group: _Group) -> list[_Held]:
        """Return the images of the group that become samples, and count the others."""
        if self._all:
            return group.held
        if self._image_fields:
            by_preference = sorted(
                group.held, key=lambda held: self._image_fields.index(held.image_field)
            )
            kept = by_preference[: not group.taken]
        else:
            kept = self._one_image(group)
        for held in group.held:
            if held not in kept:
                self._left_out.add(_label(held.member.name, held.image_field))
        return kept

    def _one_image(self, group: _Group) -> list[_Held]:
        """Return the main image of the key, and the images whose dots are part of their names."""
        of_key = [held for held in group.held if not held.is_dotted]
        if not group.named and not self._keys.has(group.key):
            return group.held
        # If the key came before, elsewhere in the archive, further images of it are second images.
        plain = [held for held in of_key if _is_plain(held.image_field)]
        spent = group.taken or (not plain and self._keys.has(group.key))
        main = [] if spent else (plain or of_key)[:1]
        return [held for held in group.held if held.is_dotted or held in main]

    def _samples(self, group: _Group, images: list[_Held]) -> Iterator[Sample]:
        for image in images:
            member, types = image.member, self._options.keep_columns
            key = self._keys.take(_key(member.name), member.name)
            fields = ""
            if types:
                sidecars = self._sidecars(group, member.name)
                fields = fields_of(sidecars, member.values, types, self._left_out)
            yield replace(image.sample, key=key, fields=fields)

    def _sidecars(self, group: _Group, name: str) -> dict[str, bytes]:
        """Return the sidecars of the image `name` by extension: its own before those of its key."""
        sidecars = {}
        for stem in (group.key, stem_of(name)):
            for name, content in group.sidecars.items():
                if name.startswith(f"{stem}."):
                    sidecars[name[len(stem) + 1 :]] = content
        return sidecars


def _sample_of(member: Member, source: str) -> Sample:
    uri = join(source, member.name)
    if member.refusal:
        return Sample("", uri, b"", "unsupported_format", member.refusal)
    if member.size > MAX_SAMPLE_BYTES:
        return too_large("", uri, member.size)
    try:
        return Sample("", uri, member.read(None))
    except UnreadableError as error:
        return Sample("", uri, b"", "undecodable", str(error))


def _key(name: str) -> str:
    """Return the path without its extension, unless that is only a number, as in `a.0001`."""
    return name if PurePosixPath(name).suffix[1:].isdigit() else stem_of(name)


def _label(name: str, image_field: str) -> str:
    is_label = _FIELD.fullmatch(image_field) and len(image_field) <= _MAX_LABEL_LENGTH
    return f"{f'.{image_field}' if is_label else label_of(name)} (another image of a key)"


def is_image_start(start: bytes) -> bool:
    """Return whether `start`, the first `START_BYTES` of a file, is that of an image.

    A signature of two letters is not enough: a caption may begin with "BM".
    """
    kind = sniff(start)
    if kind == "BMP":
        return start[6:10] == b"\0\0\0\0" and start[14:18] in _BMP_HEADERS
    return kind is not None and (kind != "JPEG" or start[2:3] == b"\xff")
