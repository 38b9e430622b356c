"""Streams of gzip, bzip2, xz and Zstandard, told by their first bytes and unpacked with bounds."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import pyarrow as pa

Packing = Literal["gzip", "bzip2", "xz", "zstd"]

# Longest signature of the four.
SIGNATURE_BYTES = 10
_BOMB_BYTES, _BOMB_RATIO = 256 << 20, 200
# `xz -9` needs 65 MiB; a header can ask for 4 GiB. Zstandard's own bound is 128 MiB.
_XZ_MEMORY = 128 << 20
_BLOCK = 256 << 10
_BZIP2_MAGIC = (bytes.fromhex("314159265359"), bytes.fromhex("177245385090"))  # block, empty


class PackedDataError(Exception):
    """Packed bytes that are damaged, cut off, or unpack to far more than they may."""


DAMAGE = (PackedDataError, EOFError, gzip.BadGzipFile, zlib.error)


def packing_of(start: bytes) -> Packing | None:
    """How data that begins with `start`, `SIGNATURE_BYTES` of it, is packed; None if it is not."""
    if start.startswith(b"\x1f\x8b"):
        return "gzip"
    if start[:3] == b"BZh" and start[4:] in _BZIP2_MAGIC:
        return "bzip2"
    if start.startswith(b"\xfd7zXZ\0"):
        return "xz"
    # A frame, or one to be skipped, with which parallel compressors begin.
    if start.startswith(b"\x28\xb5\x2f\xfd") or (
        start[1:4] == b"\x2a\x4d\x18" and start[0] >> 4 == 5
    ):
        return "zstd"
    return None


@contextmanager
def unpacked(raw: Any) -> Iterator[Any]:
    """A reader of what the seekable file `raw` holds, unpacked if it is packed.

    Packed by its first bytes, whatever its name says. Reading raises one of `DAMAGE` where the
    packed data are damaged, end early, have something else behind them, or unpack to over 200
    times their size (above 256 MiB). What the storage of `raw` raises comes through as it is.
    """
    packing = packing_of(raw.read(SIGNATURE_BYTES))
    raw.seek(0)
    if packing is None:
        yield raw
    elif packing == "gzip":
        # It checks the length and the checksum at the end, which `tarfile`'s own "r|gz" does not.
        with gzip.GzipFile(fileobj=raw) as stream:
            yield _Bounded(stream.read, raw)
    elif packing == "zstd":
        yield _Bounded(_Zstandard(raw).read, raw)
    else:
        start = bz2.BZ2Decompressor if packing == "bzip2" else _xz
        yield _Bounded(_Streams(raw, start).read, raw)


class _Bounded:
    """What packed data unpack to, as long as they are no bomb: deflate can grow by 1032 times."""

    def __init__(self, read: Callable[[int], bytes], packed: Any) -> None:
        self._read = read
        self._packed = packed
        self._bytes = 0

    def read(self, size: int) -> bytes:
        """At most `size` bytes."""
        block = self._read(size)
        self._bytes += len(block)
        if self._bytes > max(_BOMB_BYTES, _BOMB_RATIO * self._packed.tell()):
            raise PackedDataError(f"it unpacks to over {_BOMB_RATIO} times its size")
        return block


def _xz() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)


class _Streams:
    """Streams of bzip2 or xz one behind another, as `pbzip2` and `cat` make them.

    Not `BZ2File`, which gives damage the type of an error of the storage, nor `LZMAFile`, which
    has no bound on memory; both take damage behind the first stream for the end.
    """

    def __init__(self, raw: Any, start: Callable[[], Any]) -> None:
        self._raw, self._start = raw, start
        self._decompressor = start()

    def read(self, size: int) -> bytes:
        """At most `size` bytes; none at the end of the last stream."""
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
        """The beginning of the next stream; between two there may be zeros, in xz by its format."""
        while not (rest := rest.lstrip(b"\0")):
            rest = self._raw.read(_BLOCK)
            if not rest:
                return b""
        return rest


class _Zstandard:
    """Frames of Zstandard one behind another, by the codec that comes with Arrow."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw
        self._error: BaseException | None = None
        self._stream = pa.CompressedInputStream(pa.PythonFile(_Source(self._packed), "r"), "zstd")

    def _packed(self, size: int) -> bytes:
        try:
            return bytes(self._raw.read(size))
        except BaseException as error:
            self._error = error
            raise

    def read(self, size: int) -> bytes:
        """At most `size` bytes."""
        try:
            return bytes(self._stream.read(size))
        except (OSError, pa.ArrowException) as error:
            if self._error:  # of the storage
                raise self._error from error
            raise PackedDataError(f"its packed data are damaged: {error}") from error


class _Source:
    """As much of a file as Arrow asks of one."""

    closed = False

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self.read = read

    def close(self) -> None:
        """Leave the file open: it is its opener's."""
