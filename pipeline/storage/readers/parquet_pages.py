"""Check what the page headers of a Parquet file claim before Arrow allocates memory for it.

A page header states the number of bytes that the page unpacks to, and its number of values. Two
kilobytes of file can claim two gigabytes of either. The headers lie between the pages, so they are
checked while Arrow reads the file: no byte is fetched twice.

Headers are Thrift structures in the compact protocol (parquet.thrift, `PageHeader`).
"""

from __future__ import annotations

import bisect
import io
import itertools
from typing import Any

import pyarrow.parquet as pq

# A page of 1,024 placeholder images packs well: small pages are allowed with any ratio.
_FREE_BYTES, _RATIO = 256 << 20, 200
_FREE_VALUES = 1 << 20
_MAX_HEADER = 1 << 20  # with the statistics of its values
_USUAL_HEADER = 256
_HEADS = {5: "data", 7: "dictionary", 8: "data"}  # fields of PageHeader that count values


class PageBombError(ValueError):
    """A page claims more bytes or values than it can hold."""


class CheckedFile(io.RawIOBase):
    """A file for Arrow that checks every page header of the watched columns as it is read.

    The caller that opened the file behind it closes that.
    """

    def __init__(self, file: Any) -> None:
        self._file = file
        self._position = 0
        self._chunks: list[_Chunk] = []  # sorted by start
        self._starts: list[int] = []
        self._ends: list[int] = []  # running maximum of the chunks' ends

    def watch(self, metadata: pq.FileMetaData, columns: set[str]) -> None:
        """Check the pages of `columns` from now on. `columns` are names of top-level columns."""
        for group in range(metadata.num_row_groups):
            rows = metadata.row_group(group)
            for index in range(metadata.num_columns):
                column = rows.column(index)
                if column.path_in_schema.split(".")[0] in columns:
                    repeated = metadata.schema.column(index).max_repetition_level > 0
                    max_values = None if repeated else rows.num_rows
                    self._chunks.append(_Chunk(column, max_values))
        self._chunks.sort(key=lambda chunk: chunk.start)
        self._starts = [chunk.start for chunk in self._chunks]
        self._ends = list(itertools.accumulate((chunk.end for chunk in self._chunks), max))

    def read(self, size: int | None = -1) -> bytes:
        """Read the next bytes; raises `PageBombError` if a page among them claims too much."""
        content: bytes = self._file.read(-1 if size is None else size)
        behind = bisect.bisect_left(self._starts, self._position + len(content))
        first = bisect.bisect_right(self._ends, self._position)
        for chunk in self._chunks[first:behind]:
            chunk.check(self._position, content)
        self._position += len(content)
        return content

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move to a position, as a file does."""
        self._position = int(self._file.seek(offset, whence))
        return self._position

    def readable(self) -> bool:
        """Return True, as a readable file does."""
        return True

    def seekable(self) -> bool:
        """Return True, as a seekable file does."""
        return True


class _Chunk:
    """Pages of a column chunk, with the position of the next page header."""

    def __init__(self, column: Any, max_values: int | None) -> None:
        dictionary = column.dictionary_page_offset
        self.start = min(filter(None, (column.data_page_offset, dictionary)), default=0)
        self._next = self.start
        self.end = self.start + column.total_compressed_size
        self._max_values = max_values
        self._rest = b""  # start of a header that continues in the next bytes

    def check(self, start: int, content: bytes) -> None:
        """Check the headers that begin in `content`, the file's bytes from `start` on."""
        end = start + len(content)
        while self._next < self.end and start <= self._next + len(self._rest) < end:
            offset = self._next + len(self._rest) - start
            try:
                header, length = _read_header(self._rest, content, offset)
            except IndexError as error:  # the header continues behind these bytes
                self._rest += content[offset : offset + _MAX_HEADER]
                if len(self._rest) >= _MAX_HEADER:
                    raise PageBombError(f"a page header of over {_MAX_HEADER} bytes") from error
                return
            self._rest = b""
            _check(header, self._max_values)
            self._next += length + header.get("packed", 0)


def _read_header(rest: bytes, content: bytes, start: int) -> tuple[dict[str, int], int]:
    """Call `read_page_header` with `rest` + `content[start:]`, copying few bytes."""
    try:
        return read_page_header(rest + content[start : start + _USUAL_HEADER])
    except IndexError:
        return read_page_header(rest + content[start : start + _MAX_HEADER])


def _check(header: dict[str, int], max_values: int | None) -> None:
    packed, unpacked = header.get("packed", 0), header.get("unpacked", 0)
    if packed < 0 or unpacked < 0:
        raise PageBombError("a page of negative size")
    if unpacked > max(_FREE_BYTES, _RATIO * packed):
        raise PageBombError(
            f"a page of {packed} bytes claims to unpack to {unpacked}, over {_RATIO} times as many"
        )
    values, limit = header.get("data", 0), max_values
    if limit is None:
        limit = max(_FREE_VALUES, 8 * packed)
    if values > limit:
        raise PageBombError(f"a page of {packed} bytes claims {values} values, of at most {limit}")
    # Each value of a dictionary takes at least one byte.
    if header.get("dictionary", 0) > max(unpacked, 1):
        raise PageBombError(
            f"a dictionary of {unpacked} bytes claims {header['dictionary']} values"
        )


def read_page_header(content: bytes) -> tuple[dict[str, int], int]:
    """Return the claims of a page header, and its length in bytes.

    The claims are `unpacked` and `packed` bytes, and the number of values under `data` or
    `dictionary`. Raises `IndexError` if `content` ends inside the header, and `PageBombError` if it
    is invalid.
    """
    claims: dict[str, int] = {}
    reader = _Reader(content)
    for field, kind in reader.fields():
        if field in (2, 3) and kind == _I32:
            claims["unpacked" if field == 2 else "packed"] = reader.integer()
        elif field in _HEADS and kind == _STRUCT:
            for inner, inner_kind in reader.fields():
                if inner == 1 and inner_kind == _I32:
                    claims[_HEADS[field]] = reader.integer()
                else:
                    reader.skip(inner_kind)
        else:
            reader.skip(kind)
    return claims, reader.position


_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(1, 13)
_MAX_DEPTH = 16


class _Reader:
    """A reader of Thrift's compact protocol, as far as page headers need it."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.position = 0
        self._depth = 0

    def fields(self) -> Any:
        """Yield number and type of each field of a structure; each must be read or skipped."""
        number = 0
        while head := self._byte():
            delta, kind = head >> 4, head & 15
            number = number + delta if delta else self.integer()
            yield number, kind

    def integer(self) -> int:
        """Read a zigzag integer of at most 64 bits."""
        value = self._unsigned()
        return (value >> 1) ^ -(value & 1)

    def skip(self, kind: int) -> None:
        """Skip a value of this type."""
        if kind in (_I16, _I32, _I64):
            self._unsigned()
        elif kind == _BINARY:
            self._advance(self._unsigned())
        elif kind in (_BYTE, _DOUBLE):
            self._advance(1 if kind == _BYTE else 8)
        elif kind == _STRUCT:
            self._depth += 1
            if self._depth > _MAX_DEPTH:
                raise PageBombError("a page header with too deeply nested structures")
            for _, inner in self.fields():
                self.skip(inner)
            self._depth -= 1
        elif kind not in (_TRUE, _FALSE):
            # Lists, sets and maps do not occur in Parquet's page headers.
            raise PageBombError(f"a page header with a value of the type {kind}")

    def _advance(self, count: int) -> None:
        self.position += count
        if self.position > len(self._content):
            raise IndexError

    def _byte(self) -> int:
        value = self._content[self.position]
        self.position += 1
        return value

    def _unsigned(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
            if shift > 63:
                raise PageBombError("a page header with an integer of over 64 bits")
