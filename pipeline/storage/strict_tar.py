"""Reads a tar archive as a stream, and takes what is wrong in it for an error, not for its end."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from pipeline.storage import unpacking
from pipeline.storage.opening import opened

DAMAGE = (tarfile.TarError, *unpacking.DAMAGE)
_BLOCK = 8 << 20
_HEADER_BYTES = 1 << 20  # of one member, with its long names and its records
_EMPTY_READS = 8  # that `tarfile` makes at an archive's honest end


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
    """The archive at `uri`, to be read once and to its end; packed or not, as `unpacked` tells.

    Raises one of `DAMAGE` where it is damaged, also while the block lasts or as it ends, and what
    its storage raises.
    """
    with (
        opened(uri, _BLOCK) as raw,
        unpacking.unpacked(raw) as stream,
        tarfile.open(
            fileobj=cast(Any, BoundedSource(stream)), mode="r|", tarinfo=StrictTarInfo
        ) as archive,
    ):
        yield archive
        _refuse_rest(archive.fileobj)


def _refuse_rest(stream: Any) -> None:
    """Read to the end: a second archive behind the first one's end mark would go unread."""
    while rest := stream.read(1 << 20):
        if rest.strip(b"\0"):
            raise tarfile.ReadError("there is data behind the end-of-archive mark")
