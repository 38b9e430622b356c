"""Samples out of a tar archive, read as a stream; nothing is ever unpacked to a disk."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import IO, Any, cast

from pipeline.errors import StorageError
from pipeline.storage.formats import is_hidden, is_image, readable_name
from pipeline.storage.left_out import LeftOut
from pipeline.storage.members import Member, samples_of
from pipeline.storage.options import ReadOptions
from pipeline.storage.sample import Sample
from pipeline.storage.shards import Shard
from pipeline.storage.strict_tar import DAMAGE, open_tar
from pipeline.storage.uris import one_line, storage_errors

_MOST_HOLES = 16 << 20  # bytes of a sparse file that are not in the archive
_SPARSE_BLOCK = 64 << 10


def read_tar(shard: Shard, options: ReadOptions, left_out: LeftOut) -> Iterator[Sample]:
    """The images of the archive in its order, as `members.samples_of` chooses and names them.

    Sidecars (`.json`, `.txt`, `.cls`, ...), nested archives and hidden files are no samples, but
    are counted in `left_out`. A link with an image's name is a sample without content, as links
    are not followed.
    """
    count = 0
    with storage_errors(f"read '{shard.uri}'"):
        try:
            with open_tar(shard.uri) as archive:
                for sample in samples_of(_members(archive), shard.source, options, left_out):
                    count += 1
                    yield sample
        except DAMAGE as error:
            raise StorageError(
                f"the shard '{shard.uri}' is damaged after {count} samples ({one_line(error)}); "
                "replace it and run again"
            ) from error


def _members(archive: tarfile.TarFile) -> Iterator[Member]:
    for info in archive:
        if not info.isdir():
            yield member_of(archive, info)
        cast(Any, archive).members.clear()  # `tarfile` keeps all of them


def is_sample(member: tarfile.TarInfo) -> bool:
    """Whether a member is one by its name: an image that is not hidden."""
    name = member_name(member)
    return not member.isdir() and is_image(name) and not is_hidden(name)


def member_name(member: tarfile.TarInfo) -> str:
    """The path of a member, made readable, without "./" before it."""
    return readable_name(member.name.removeprefix("./"))


def member_of(archive: tarfile.TarFile, info: tarfile.TarInfo) -> Member:
    """A file, link or special file of `archive`, which stands at its content."""
    name = member_name(info)
    if not info.isfile():
        detail = f"a link to '{readable_name(info.linkname)}' or a special file, not an image"
        return Member(name, 0, lambda _: b"", detail)
    if detail := sparse_refusal(info):
        return Member(name, 0, lambda _: b"", detail)
    return Member(name, info.size, _Content(archive, info).read)


def sparse_refusal(info: tarfile.TarInfo) -> str:
    """Why a sparse file is not read: most of it is holes, which a kilobyte of archive can claim."""
    parts = cast(list[tuple[int, int]] | None, info.sparse)
    if parts is None:
        return ""
    stored = sum(max(0, size) for _, size in parts)
    if info.size - stored <= _MOST_HOLES:
        return ""
    return (
        f"a sparse file of {info.size} bytes, of which the archive holds {stored}; store it whole"
    )


class _Content:
    """What a member holds; its first bytes can be looked at before, though a stream goes on."""

    def __init__(self, archive: tarfile.TarFile, info: tarfile.TarInfo) -> None:
        self._archive, self._info = archive, info
        self._file: IO[bytes] | None = None
        self._start = b""

    def read(self, size: int | None) -> bytes:
        """The first `size` bytes, or all."""
        if self._file is None:
            self._file = cast(IO[bytes], self._archive.extractfile(self._info))
        if size is None:
            file = self._file
            # In blocks: `tarfile` joins the parts of a sparse file in quadratic time.
            rest = iter(lambda: file.read(_SPARSE_BLOCK), b"")
            return self._start + (b"".join(rest) if self._info.sparse else self._file.read())
        self._start += self._file.read(max(0, size - len(self._start)))
        return self._start[:size]
