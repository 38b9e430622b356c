"""Decompress gzip, bzip2, xz and Zstandard streams, recognised by first bytes, within limits."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, Literal

import pyarrow as pa

Packing = Literal["gzip", "bzip2", "xz", "zstd"]

# Length of the longest signature.
SIGNATURE_BYTES = 10
_BOMB_BYTES, _BOMB_RATIO = 256 << 20, 200
# `xz -9` needs 65 MiB; a header can ask for 4 GiB. Zstandard's own limit is 128 MiB.
_XZ_MEMORY = 128 << 20
_BLOCK = 256 << 10
_BZIP2_MAGIC = (bytes.fromhex("314159265359"), bytes.fromhex("177245385090"))  # block, empty


class PackedDataError(Exception):
    """Compressed data that are damaged, cut off, or unpack to more than is allowed."""


DAMAGE = (PackedDataError, EOFError, gzip.BadGzipFile, zlib.error)


def packing_of(start: bytes) -> Packing | None:
    """Return the compression of data by their first `SIGNATURE_BYTES`; None if uncompressed."""
    if start.startswith(b"\x1f\x8b"):
        return "gzip"
    if start[:3] == b"BZh" and start[4:] in _BZIP2_MAGIC:
        return "bzip2"
    if start.startswith(b"\xfd7zXZ\0"):
        return "xz"
    # A data frame, or a skippable frame, which parallel compressors write first.
    if start.startswith(b"\x28\xb5\x2f\xfd") or (
        start[1:4] == b"\x2a\x4d\x18" and start[0] >> 4 == 5
    ):
        return "zstd"
    return None


@contextmanager
def open_unpacked(raw: Any) -> Iterator[Any]:
    """Open a reader of the uncompressed content of the seekable file `raw`.

    The compression is recognised by the first bytes; names are ignored. Reading raises one of
    `DAMAGE` if the compressed data are damaged, end early, are followed by other data, or unpack to
    over 200 times their size (above 256 MiB). Errors of the storage of `raw` are not translated.
    """
    packing = packing_of(raw.read(SIGNATURE_BYTES))
    raw.seek(0)
    if packing is None:
        yield raw
    elif packing == "gzip":
        # Unlike `tarfile`'s own "r|gz", it checks the length and the checksum at the end.
        with gzip.GzipFile(fileobj=raw) as stream:
            yield _Bounded(stream.read, raw)
    elif packing == "zstd":
        yield _Bounded(_Zstandard(raw).read, raw)
    else:
        start = bz2.BZ2Decompressor if packing == "bzip2" else _xz
        yield _Bounded(_Streams(raw, start).read, raw)


class _Bounded:
    """A reader of unpacked data that stops bombs: deflate can grow by 1032 times."""

    def __init__(self, read: Callable[[int], bytes], packed: Any) -> None:
        self._read = read
        self._packed = packed
        self._bytes = 0

    def read(self, size: int) -> bytes:
        """Read at most `size` bytes."""
        block = self._read(size)
        self._bytes += len(block)
        if self._bytes > max(_BOMB_BYTES, _BOMB_RATIO * self._packed.tell()):
            raise PackedDataError(f"it unpacks to over {_BOMB_RATIO} times its size")
        return block


def _xz() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)


class _Streams:
    """A reader of concatenated bzip2 or xz streams, as `pbzip2` and `cat` write them.

    Used instead of `BZ2File`, which reports damage as an `OSError` like errors of the storage, and
    of `LZMAFile`, which has no memory limit. Both treat damage after the first stream as the end.
    """

    def __init__(self, raw: Any, start: Callable[[], Any]) -> None:
        self._raw, self._start = raw, start
        self._decompressor = start()

    def read(self, size: int) -> bytes:
        """Read at most `size` bytes; none at the end of the last stream."""
        while True:
            if self._decompressor.eof:
                rest = self._next_stream(self._decompressor.unused_data)
                if not rest:
                    return b""
                self._decompressor = self._start()
            elif self._decompressor.needs_input:
                rest = self._raw.read(_BLOCK)
                if not rest:
                    raise PackedDataError("it ends before its packed data do")
            else:
                rest = b""
            try:
                block: bytes = self._decompressor.decompress(rest, size)
            except (OSError, lzma.LZMAError) as error:
                raise PackedDataError(f"its packed data are damaged: {error}") from error
            if block:
                return block

    def _next_stream(self, rest: bytes) -> bytes:
        """Return the first bytes of the next stream; xz allows zeros between two streams."""
        while not (rest := rest.lstrip(b"\0")):
            rest = self._raw.read(_BLOCK)
            if not rest:
                return b""
        return rest


class _Zstandard:
    """A reader of concatenated Zstandard frames, with the codec of Arrow."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw
        self._error: BaseException | None = None
        # Arrow closes its file, but the caller that opened `raw` closes that.
        file = SimpleNamespace(read=self._packed, close=lambda: None, closed=False)
        self._stream = pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd")

    def _packed(self, size: int) -> bytes:
        try:
            return bytes(self._raw.read(size))
        except BaseException as error:
            self._error = error
            raise

    def read(self, size: int) -> bytes:
        """Read at most `size` bytes."""
        try:
            return bytes(self._stream.read(size))
        except (OSError, pa.ArrowException) as error:
            if self._error:  # raised by the storage
                raise self._error from error
            raise PackedDataError(f"its packed data are damaged: {error}") from error
