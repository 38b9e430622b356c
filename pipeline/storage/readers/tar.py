"""Stream the samples of a tar archive; a damaged archive is an error, not an early end."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, cast

from pipeline.storage.file_types import readable_name
from pipeline.storage.left_out import LeftOut
from pipeline.storage.read_options import ReadOptions
from pipeline.storage.readers import decompression
from pipeline.storage.readers.archive_members import Member, samples_of
from pipeline.storage.sample import Sample
from pipeline.storage.seekable import open_seekable
from pipeline.storage.shards import Shard

DAMAGE = (tarfile.TarError, *decompression.DAMAGE)
_BLOCK = 8 << 20
_HEADER_BYTES = 1 << 20  # limit for one member, with its long names and records
_EMPTY_READS = 8  # number of empty reads that `tarfile` makes at the end of a complete archive


class StrictTarInfo(tarfile.TarInfo):
    """A tar header that raises an error if it cannot be read.

    `tarfile` treats a damaged header, or an archive that ends between two members, as the end of
    the archive; the samples behind it would be lost silently.
    """

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> StrictTarInfo:
        """Read the next header of `archive`."""
        source: BoundedSource = cast(Any, archive.fileobj).fileobj
        try:
            with source.header():
                return super().fromtarfile(archive)
        except _END_OF_ARCHIVE:
            raise
        except tarfile.HeaderError as error:
            why = error or "unexpected end"
            raise tarfile.ReadError(f"no end-of-archive mark: {why}") from error
        # Records with invalid lengths, numbers or texts; endless chains of headers.
        except (ValueError, ArithmeticError, LookupError, RecursionError) as error:
            raise tarfile.ReadError(f"a header that cannot be read: {error}") from error


class BoundedSource:
    """Source of an archive's bytes for `tarfile`, with limits on what a header can request.

    `tarfile` skips a member by reading up to its claimed end even if the file ends long before, and
    reads a header's records into memory whatever their size.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._empty_reads = 0
        self._header_left: int | None = None

    def read(self, size: int) -> bytes:
        """Read at most `size` bytes; `tarfile.ReadError` if the archive requests too much."""
        block: bytes = self._stream.read(size)
        self._empty_reads += not block
        if self._empty_reads > _EMPTY_READS:
            raise tarfile.ReadError("it ends inside a member")
        if self._header_left is not None:
            self._header_left -= len(block)
            if self._header_left < 0:
                raise tarfile.ReadError(f"a header of over {_HEADER_BYTES} bytes")
        return block

    @contextmanager
    def header(self) -> Iterator[None]:
        """Limit the bytes of a member's headers in a `with` block, nested headers included."""
        outermost = self._header_left is None
        if outermost:
            self._header_left = _HEADER_BYTES
        try:
            yield
        finally:
            if outermost:
                self._header_left = None


_END_OF_ARCHIVE = cast(type[Exception], vars(tarfile)["EOFHeaderError"])


@contextmanager
def open_tar(uri: str) -> Iterator[tarfile.TarFile]:
    """Open the archive at `uri`, compressed or not, to be read once from start to end.

    Raises one of `DAMAGE` if it is damaged, also during the block or at its end, and the errors of
    the storage.
    """
    with (
        open_seekable(uri, _BLOCK) as raw,
        decompression.open_unpacked(raw) as stream,
        tarfile.open(
            fileobj=cast(Any, BoundedSource(stream)), mode="r|", tarinfo=StrictTarInfo
        ) as archive,
    ):
        yield archive
        _check_end(archive.fileobj)


def _check_end(stream: Any) -> None:
    """Raise an error if data follow the end mark, such as a second archive."""
    while rest := stream.read(1 << 20):
        if rest.strip(b"\0"):
            raise tarfile.ReadError("there is data behind the end-of-archive mark")


_MAX_HOLES = 16 << 20  # bytes of a sparse file that are not in the archive
_SPARSE_BLOCK = 64 << 10


def read_tar(shard: Shard, options: ReadOptions, left_out: LeftOut) -> Iterator[Sample]:
    """Yield the images of the archive in its order, chosen by `archive_members.samples_of`.

    Sidecars (`.json`, `.txt`, `.cls`, ...), nested archives and hidden files are counted in
    `left_out`. A link with an image's name is a reject: links are not followed. Raises one of
    `DAMAGE` after the samples before the damage.
    """
    with open_tar(shard.uri) as archive:
        yield from samples_of(members_of(archive), shard.source, options, left_out)


def members_of(archive: tarfile.TarFile) -> Iterator[Member]:
    """Yield the files, links and special files of an archive; memory holds one of them."""
    for info in archive:
        if not info.isdir():
            yield _member_of(archive, info)
        cast(Any, archive).members.clear()  # `tarfile` would keep all of them


def member_name(member: tarfile.TarInfo) -> str:
    """Return the readable path of a member, without a leading "./"."""
    return readable_name(member.name.removeprefix("./"))


def _member_of(archive: tarfile.TarFile, info: tarfile.TarInfo) -> Member:
    if info.isfile():
        refusal = sparse_refusal(info)
    else:
        refusal = f"a link to '{readable_name(info.linkname)}' or a special file, not an image"
    size = 0 if refusal else info.size
    return Member(member_name(info), size, _Content(archive, info).read, refusal)


def sparse_refusal(info: tarfile.TarInfo) -> str:
    """Return why a sparse file is not read; "" for other files.

    A kilobyte of archive can claim any number of bytes in holes.
    """
    parts = cast(list[tuple[int, int]] | None, info.sparse)
    if parts is None:
        return ""
    stored = sum(max(0, size) for _, size in parts)
    if info.size - stored <= _MAX_HOLES:
        return ""
    return (
        f"a sparse file of {info.size} bytes, of which the archive holds {stored}; store it whole"
    )


class _Content:
    """Content of a member of a stream, whose first bytes can be read before the rest."""

    def __init__(self, archive: tarfile.TarFile, info: tarfile.TarInfo) -> None:
        self._archive, self._info = archive, info
        self._file: IO[bytes] | None = None
        self._start = b""

    def read(self, size: int | None) -> bytes:
        """Read the first `size` bytes, or all."""
        if self._file is None:
            self._file = cast(IO[bytes], self._archive.extractfile(self._info))
        if size is None:
            file = self._file
            # In blocks: `tarfile` joins the parts of a sparse file in quadratic time.
            rest = iter(lambda: file.read(_SPARSE_BLOCK), b"")
            return self._start + (b"".join(rest) if self._info.sparse else self._file.read())
        self._start += self._file.read(max(0, size - len(self._start)))
        return self._start[:size]
