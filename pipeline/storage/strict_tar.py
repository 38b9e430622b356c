"""Reads a tar archive as a stream, and takes what is wrong in it for an error, not for its end."""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from pipeline.storage.uris import filesystem

DAMAGE = (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error)
_BLOCK = 8 << 20
_HEADER_BYTES = 1 << 20  # of one member, with its long names and its records
_EMPTY_READS = 8  # that `tarfile` makes at an archive's honest end
_BOMB_BYTES, _BOMB_RATIO = 256 << 20, 200


class StrictTarInfo(tarfile.TarInfo):
    """Headers that cannot be read are errors.

    `tarfile` takes a damaged header, or an archive that ends between two members, for the end
    of the archive; the samples behind it would be lost in silence.
    """

    @classmethod
    def fromtarfile(
        cls, tarfile: tarfile.TarFile
    ) -> StrictTarInfo:  # the parameter's name is given
        source: BoundedSource = cast(Any, tarfile.fileobj).fileobj
        try:
            with source.header():
                return super().fromtarfile(tarfile)
        except _END_OF_ARCHIVE:
            raise
        except _HEADER_ERROR as error:
            raise _READ_ERROR(f"no end-of-archive mark: {error or 'unexpected end'}") from error
        # Records with lengths, numbers or texts that are none; headers that announce headers.
        except (ValueError, ArithmeticError, LookupError, RecursionError) as error:
            raise _READ_ERROR(f"a header that cannot be read: {error}") from error


class BoundedSource:
    """The archive's bytes as `tarfile` takes them, with an end to what a header can ask for.

    `tarfile` skips a member by reading to its end, although the file ended long before, and takes
    a header's records into memory whatever their size.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._empty_reads = 0
        self._header_left: int | None = None

    def read(self, size: int) -> bytes:
        """At most `size` bytes; `tarfile.ReadError` where the archive asks for too much."""
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
        """While a member's headers are read; the headers that they announce count in."""
        outermost = self._header_left is None
        if outermost:
            self._header_left = _HEADER_BYTES
        try:
            yield
        finally:
            if outermost:
                self._header_left = None


_READ_ERROR = tarfile.ReadError
_HEADER_ERROR = tarfile.HeaderError
_END_OF_ARCHIVE = cast(type[Exception], vars(tarfile)["EOFHeaderError"])


@contextmanager
def open_tar(uri: str) -> Iterator[tarfile.TarFile]:
    """The archive at `uri`, to be read once and to its end; packed with gzip or not.

    Raises one of `DAMAGE` where it is damaged, also while the block lasts or as it ends, and what
    its storage raises.
    """
    fs, path = filesystem(uri)
    with (
        fs.open(path, "rb", block_size=_BLOCK, cache_type="readahead") as raw,
        _plain(raw) as stream,
        tarfile.open(
            fileobj=cast(Any, BoundedSource(stream)), mode="r|", tarinfo=StrictTarInfo
        ) as archive,
    ):
        yield archive
        _refuse_rest(archive.fileobj)


@contextmanager
def _plain(raw: Any) -> Iterator[Any]:
    """`raw` unpacked if it is gzip by its first bytes, whatever its name says.

    `gzip` checks the length and the checksum at the end, which `tarfile`'s own "r|gz" does not.
    """
    packed = raw.read(2) == b"\x1f\x8b"
    raw.seek(0)
    if not packed:
        yield raw
        return
    with gzip.GzipFile(fileobj=raw) as stream:
        yield _Unpacked(stream, raw)


class _Unpacked:
    """What a gzip unpacks to, as long as it is no bomb: deflate can grow by 1032 times."""

    def __init__(self, stream: Any, packed: Any) -> None:
        self._stream = stream
        self._packed = packed
        self._bytes = 0

    def read(self, size: int) -> bytes:
        """At most `size` bytes."""
        block: bytes = self._stream.read(size)
        self._bytes += len(block)
        if self._bytes > max(_BOMB_BYTES, _BOMB_RATIO * self._packed.tell()):
            raise tarfile.ReadError(f"it unpacks to over {_BOMB_RATIO} times its size")
        return block


def _refuse_rest(stream: Any) -> None:
    """Read to the end: a second archive behind the first one's end mark would go unread."""
    while rest := stream.read(1 << 20):
        if rest.strip(b"\0"):
            raise tarfile.ReadError("there is data behind the end-of-archive mark")
