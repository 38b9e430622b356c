"""Which members of a tar or zip are images, and which of them are one sample.

webdataset keeps a sample as adjacent members that share a key: the path up to the first dot of its
last component. What follows is the field, `jpg`, `seg.png` or `json`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from pipeline.storage.file_types import is_hidden, is_image, may_be_image, sniff
from pipeline.storage.kept_columns import MAX_FIELD_BYTES, fields_of
from pipeline.storage.left_out import LeftOut, label_of
from pipeline.storage.read_options import ALL_IMAGES, ReadOptions
from pipeline.storage.sample import MAX_SAMPLE_BYTES, Sample, UniqueKeys, too_large
from pipeline.storage.uris import join

START_BYTES = 1024
_BMP_HEADERS = {size.to_bytes(4, "little") for size in (12, 16, 40, 52, 56, 64, 108, 124)}
# Of one key, while it is not known whether they are one sample's.
_HELD_IMAGES, _HELD_BYTES, _HELD_SIDECARS = 16, 64 << 20, 64
_FIELD = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*", re.ASCII)
_NUMBERED = re.compile(r"v?\d+", re.ASCII)
_LONGEST_LABEL = 32


@dataclass
class Member:
    """A file of an archive: `read` gives its content, or its first bytes, while it is at hand.

    `refusal` says why its content is not read, as the detail of an `unsupported_format` reject;
    `read` may raise `UnreadableError` with the reason. `values` are fields that the archive itself
    has of the image.
    """

    name: str  # readable, without "./" before it
    size: int
    read: Callable[[int | None], bytes]
    refusal: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)


class UnreadableError(Exception):
    """Why the content of one member cannot be read; the others can."""


@dataclass(frozen=True, eq=False)
class _Held:
    """An image that waits until it is known what else belongs to its key."""

    name: str
    key: str
    image_field: str
    size: int
    sample: Sample  # without its own key and fields
    values: Mapping[str, Any]  # of `Member`

    @property
    def is_plain(self) -> bool:
        """Whether its name is the key and an extension alone."""
        return _is_plain(self.image_field)

    @property
    def is_dotted(self) -> bool:
        """Whether the dots in its name separate no fields: `IMG.1.jpg`, `J. Doe.jpg`, `a.jpg.1`.

        Of a field's name webdataset asks nothing; these are not what its programs write.
        """
        parts = self.image_field.split(".")
        numbered = any(_NUMBERED.fullmatch(part) for part in (parts[0], parts[-1]))
        return not self.is_plain and (numbered or not _FIELD.fullmatch(self.image_field))


@dataclass
class _Group:
    """The adjacent members of one key."""

    key: str = ""
    named: bool = False  # whether a member is the key and an extension alone
    taken: bool = False  # whether the key's one image is given out
    fields: set[str] = field(default_factory=set)  # of images
    held: list[_Held] = field(default_factory=list)
    sidecars: dict[str, bytes] = field(default_factory=dict)

    @property
    def is_full(self) -> bool:
        """Whether no more is to be held."""
        size = sum(held.size for held in self.held)
        return len(self.held) > 1 and (len(self.held) > _HELD_IMAGES or size > _HELD_BYTES)


def samples_of(
    members: Iterator[Member], source: str, options: ReadOptions, left_out: LeftOut
) -> Iterator[Sample]:
    """The images among `members` of the archive `source` as samples, in their order.

    The key is the member's path without its image extension; if another member took it, the whole
    path; if that is taken too (one path stored twice), the path with `~2`, `~3`, ... behind it.
    What is no sample is counted in `left_out`. Memory holds at most the images of one key, 16 or
    64 MiB. What `members` raises comes behind the samples before it.
    """
    chooser = _Chooser(source, options, left_out)
    try:
        for member in members:
            yield from chooser.add(member)
    except Exception:
        yield from chooser.finish()
        raise
    yield from chooser.finish()


def split_name(name: str) -> tuple[str, str]:
    """webdataset's key and field of a member, the field in lower case."""
    folder, slash, base = name.rpartition("/")
    stem, _, image_field = base.partition(".")
    return folder + slash + stem, image_field.lower()


def _is_plain(image_field: str) -> bool:
    return "." not in image_field and not _NUMBERED.fullmatch(image_field)


class _Chooser:
    """Groups members by key and gives out the samples of each group when it is complete."""

    def __init__(self, source: str, options: ReadOptions, left_out: LeftOut) -> None:
        self._source, self._options, self._left_out = source, options, left_out
        self._wanted = options.image_fields  # empty: any image
        self._all = options.image_field == ALL_IMAGES
        self._keys = UniqueKeys()
        self._group = _Group()

    def add(self, member: Member) -> Iterator[Sample]:
        """Take the next member; the samples that are complete by now."""
        if is_hidden(member.name):
            self._left_out.add_file(member.name)
            return
        key, image_field = split_name(member.name)
        is_one = self._is_image(member, image_field)
        if key != self._group.key or (is_one and image_field in self._group.fields):
            yield from self.finish()
            self._group.key = key
        if is_one:
            self._hold(member, key, image_field)
        else:
            self._add_sidecar(member, image_field)
        yield from self._overflow()

    def finish(self) -> Iterator[Sample]:
        """The samples of the group, which is complete; an empty one begins."""
        group, self._group = self._group, _Group()
        yield from self._give_out(group, self._choose(group))

    def _is_image(self, member: Member, image_field: str) -> bool:
        if self._wanted:
            return image_field in self._wanted
        if is_image(member.name):
            return True
        if not self._options.sniff or member.refusal or not may_be_image(member.name):
            return False
        try:
            return is_image_start(member.read(START_BYTES))
        except UnreadableError:
            return False

    def _hold(self, member: Member, key: str, image_field: str) -> None:
        self._group.fields.add(image_field)
        self._group.named |= _is_plain(image_field)
        self._group.held.append(
            _Held(
                member.name,
                key,
                image_field,
                member.size,
                _sample_of(member, self._source),
                member.values,
            )
        )

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
        elif self._wanted and is_image(member.name):
            self._left_out.add(_label(member.name, image_field))
        else:
            self._left_out.add_file(member.name)

    def _overflow(self) -> Iterator[Sample]:
        """What need not, or must not, be held any longer."""
        group = self._group
        if self._all and not self._options.keep_columns:
            group.held, held = [], group.held
            yield from self._give_out(group, held)
            return
        while group.is_full:
            group.held = self._choose(group)
            if group.is_full:
                oldest, *group.held = group.held
                group.taken |= group.named and not oldest.is_dotted
                yield from self._give_out(group, [oldest])

    def _choose(self, group: _Group) -> list[_Held]:
        """Those of the group's images that become samples; the others are counted."""
        if self._all:
            return group.held
        if self._wanted:
            by_preference = sorted(group.held, key=lambda one: self._wanted.index(one.image_field))
            kept = by_preference[: not group.taken]
        else:
            kept = self._one_image(group)
        for one in group.held:
            if one not in kept:
                self._left_out.add(_label(one.name, one.image_field))
        return kept

    def _one_image(self, group: _Group) -> list[_Held]:
        of_key = [one for one in group.held if not one.is_dotted]
        if not group.named and not self._keys.has(group.key):
            return group.held
        # Of a key that came before, in another place of the archive, others are second images.
        plain = [one for one in of_key if one.is_plain]
        spent = group.taken or (not plain and self._keys.has(group.key))
        best = [] if spent else (plain or of_key)[:1]
        return [one for one in group.held if one.is_dotted or one in best]

    def _give_out(self, group: _Group, held: list[_Held]) -> Iterator[Sample]:
        for one in held:
            key = self._keys.take(_key(one.name), one.name)
            fields = ""
            if self._options.keep_columns:
                fields = fields_of(
                    self._beside(group, one),
                    one.values,
                    self._options.keep_columns,
                    self._left_out,
                )
            yield one.sample.with_key(key, fields)

    def _beside(self, group: _Group, one: _Held) -> dict[str, bytes]:
        """The sidecars of an image by extension: those of its name before those of its key."""
        found = {}
        for stem in (one.key, one.name[: -len(PurePosixPath(one.name).suffix) or None]):
            for name, content in group.sidecars.items():
                if name.startswith(f"{stem}."):
                    found[name[len(stem) + 1 :]] = content
        return found


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
    """The path without its extension, unless that is a mere number, as in `a.0001`."""
    suffix = PurePosixPath(name).suffix
    return name if suffix[1:].isdigit() else name[: -len(suffix) or None]


def _label(name: str, image_field: str) -> str:
    known = _FIELD.fullmatch(image_field) and len(image_field) <= _LONGEST_LABEL
    return f"{f'.{image_field}' if known else label_of(name)} (another image of a key)"


def is_image_start(start: bytes) -> bool:
    """Whether a member without a known extension is an image by its first `START_BYTES`.

    Signatures of two letters are not trusted alone: a caption may begin with "BM".
    """
    kind = sniff(start)
    if kind == "BMP":
        return start[6:10] == b"\0\0\0\0" and start[14:18] in _BMP_HEADERS
    return kind is not None and (kind != "JPEG" or start[2:3] == b"\xff")
