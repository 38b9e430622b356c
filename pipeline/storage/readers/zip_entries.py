"""Read the entries of a zip archive by its central directory (PKWARE's APPNOTE 6.3.9).

Python's `zipfile` holds 1 kB per entry in memory, trusts the sizes in the archive, and stops at the
first damaged entry. Here the directory is read in pieces, and a damaged entry does not affect the
others.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.storage.readers.archive_members import UnreadableError

_END = struct.Struct("<4s4H2LH")  # signature, disks, entries, directory's size and offset, comment
_END64_PLACE = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_MAX_COMMENT = 0xFFFF
_FULL = 0xFFFF_FFFF  # value of a field whose number is in the zip64 record instead
_PIECE = 1 << 20
_STORED, _DEFLATED = 0, 8
_inflater = zlib.decompressobj
_METHODS = {9: "Deflate64", 12: "bzip2", 14: "LZMA", 93: "Zstandard", 95: "xz", 99: "AES"}
_ENCRYPTED, _UTF8 = 0x1 | 0x40, 0x800
_UNIX, _TYPE, _LINK, _FOLDER = 3, 0o170000, 0o120000, 0o040000


class ZipDamageError(Exception):
    """Damaged directory of an archive, or an archive that is a bomb."""


@dataclass(frozen=True, slots=True)
class ZipEntry:
    """A file or folder of the archive, as described by the central directory.

    `name` has forward slashes, and ends with one if it is a folder. `packed` and `size` are the
    claimed numbers of bytes before and after unpacking. `offset` is that of the local header. `end`
    is the last possible end of the data. `refusal` says why the content cannot be read; empty if it
    may be.
    """

    name: str
    packed: int
    size: int
    method: int
    crc: int
    offset: int
    end: int
    refusal: str


@dataclass(frozen=True)
class _Directory:
    """Position and size of the central directory, and the number of its entries."""

    start: int
    size: int
    entries: int
    counts_wrap: bool  # `entries` is the remainder modulo 65536
    shift: int  # bytes before the archive, as in a self-extracting program


def entries_of(file: Any) -> Iterator[ZipEntry]:
    """Yield the entries of a seekable `file` in the order of its central directory.

    Raises `ZipDamageError` if the directory is missing or damaged, after the entries before the
    damage. Memory holds pieces of a megabyte.
    """
    directory = _find_directory(file)
    file.seek(directory.start)
    left, piece, at, count = directory.size, b"", 0, 0
    while left or at < len(piece):
        if len(piece) - at < _ENTRY.size + 3 * 0xFFFF and left:
            more = file.read(min(left, _PIECE))
            if not more:
                raise ZipDamageError("its directory ends too early")
            left -= len(more)
            piece, at = piece[at:] + more, 0
            continue
        entry, at = _entry(piece, at, directory)
        count += 1
        yield entry
    if count != directory.entries and not (
        directory.counts_wrap and count % 0x10000 == directory.entries
    ):
        raise ZipDamageError(f"its directory has {count} of {directory.entries} entries")


def _find_directory(file: Any) -> _Directory:
    length = file.seek(0, 2)
    tail_start = max(0, length - _END.size - _MAX_COMMENT)
    file.seek(tail_start)
    tail: bytes = file.read(length - tail_start)
    place = len(tail)
    while (place := tail.rfind(b"PK\5\6", 0, place)) >= 0:
        if place + _END.size <= len(tail):
            _, disk, first, _, entries, size, offset, comment = _END.unpack_from(tail, place)
            if place + _END.size + comment == len(tail):
                break
    else:
        raise ZipDamageError(
            "it has no end-of-archive record: it is not a zip, is cut off, or other data follow it"
        )
    end = tail_start + place
    zip64 = _find_zip64(file, end)
    if zip64:
        end, entries, size, offset = zip64
        return _directory(end, entries, size, offset, wraps=False)
    if disk or first:
        raise ZipDamageError("it is one part of an archive in several files")
    return _directory(end, entries, size, offset, wraps=True)


def _directory(end: int, entries: int, size: int, offset: int, *, wraps: bool) -> _Directory:
    shift = end - size - offset
    if shift < 0:
        raise ZipDamageError("its end-of-archive record gives a wrong place of the directory")
    return _Directory(end - size, size, entries, wraps, shift)


def _find_zip64(file: Any, end: int) -> tuple[int, int, int, int] | None:
    """Return place of the zip64 end record, number of entries, size and offset of the directory.

    Returns None if the archive has no such record.
    """
    if end < _END64_PLACE.size + _END64.size:
        return None
    file.seek(end - _END64_PLACE.size)
    signature, _, claimed, _ = _END64_PLACE.unpack(_read_exactly(file, _END64_PLACE.size))
    if signature != b"PK\6\7":
        return None
    # With bytes before the archive the claimed place is too small by their number.
    for place in (claimed, end - _END64_PLACE.size - _END64.size):
        if 0 <= place <= end - _END64_PLACE.size - _END64.size:
            file.seek(place)
            record = _END64.unpack(_read_exactly(file, _END64.size))
            if record[0] == b"PK\6\6":
                return place, record[7], record[8], record[9]
    raise ZipDamageError("its zip64 end record is missing")


def _entry(piece: bytes, at: int, directory: _Directory) -> tuple[ZipEntry, int]:
    """Parse the entry at `at` of a piece of the directory; return it and the next one's place."""
    if len(piece) - at < _ENTRY.size or piece[at : at + 4] != b"PK\1\2":
        raise ZipDamageError("an entry of its directory cannot be read")
    fields = _ENTRY.unpack_from(piece, at)
    made_by, _, flags, method, _, _, crc, packed, size = fields[1:10]
    name_length, extra_length, comment, _, _, attributes, offset = fields[10:]
    begin = at + _ENTRY.size
    middle = begin + name_length
    end = middle + extra_length + comment
    if end > len(piece):
        raise ZipDamageError("an entry of its directory cannot be read")
    extra = piece[middle : middle + extra_length]
    size, packed, offset = _widen(extra, size, packed, offset)
    name = _name(piece[begin:middle], utf8=bool(flags & _UTF8))
    mode = attributes >> 16 & _TYPE if made_by >> 8 == _UNIX else 0
    if mode == _FOLDER and not name.endswith("/"):
        name += "/"
    refusal = "a link, which is not followed" if mode == _LINK else _refusal(flags, method)
    offset += directory.shift
    entry = ZipEntry(name, packed, size, method, crc, offset, directory.start, refusal)
    return entry, end


def _widen(extra: bytes, *narrow: int) -> tuple[int, ...]:
    """Replace each `_FULL` number of `narrow` by the next one of the zip64 record in `extra`."""
    if _FULL not in narrow:
        return narrow
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            record = extra[at + 4 : at + 4 + length]
            numbers = iter(struct.unpack_from(f"<{len(record) // 8}Q", record))
            return tuple(next(numbers, _FULL) if n == _FULL else n for n in narrow)
        at += 4 + length
    return narrow


def _name(raw: bytes, *, utf8: bool) -> str:
    """Decode a name as UTF-8, also without the flag for it, else by the code page of DOS.

    Backslashes from Windows become slashes.
    """
    raw = raw.split(b"\0")[0]
    if b"/" not in raw:
        raw = raw.replace(b"\\", b"/")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("utf-8", "backslashreplace") if utf8 else raw.decode("cp437")


def _refusal(flags: int, method: int) -> str:
    if flags & _ENCRYPTED:
        return "encrypted inside the zip: unpack it with its password"
    if method not in (_STORED, _DEFLATED):
        packing = _METHODS.get(method, f"method {method}")
        return f"packed inside the zip by {packing}; stored and deflated entries are read"
    return ""


def read_entry(file: Any, entry: ZipEntry, at_most: int | None = None) -> bytes:
    """Read the content of an entry of the seekable `file`, or its first `at_most` bytes.

    Raises `UnreadableError` if it cannot be read, has another length than claimed, or, read whole,
    another checksum. Never unpacks more than the entry's `size` + 1 bytes.
    """
    if entry.refusal:
        raise UnreadableError(entry.refusal)
    length = entry.size if at_most is None else min(at_most, entry.size)
    pieces, total, crc = [], 0, 0
    piece_size = _PIECE if at_most is None else 2 * at_most
    for piece in _unpack(_packed(file, entry, piece_size), entry, length):
        pieces.append(piece)
        total += len(piece)
        crc = zlib.crc32(piece, crc)
        if total > length:
            break
    if at_most is not None:
        return b"".join(pieces)[:length]
    if total != entry.size:
        more = "more" if total > entry.size else f"{total}"
        raise UnreadableError(f"damaged inside the zip: {more} of {entry.size} bytes")
    if crc != entry.crc:
        raise UnreadableError("damaged inside the zip: its checksum does not fit")
    return b"".join(pieces)


def _packed(file: Any, entry: ZipEntry, piece_size: int) -> Iterator[bytes]:
    """Yield the packed bytes of an entry, located by its local header."""
    file.seek(min(entry.offset, entry.end))
    header = file.read(_LOCAL.size)
    if len(header) < _LOCAL.size or header[:4] != b"PK\3\4":
        raise UnreadableError("damaged inside the zip: there is no entry where it should begin")
    name_length, extra_length = _LOCAL.unpack(header)[9:]
    begin = entry.offset + _LOCAL.size + name_length + extra_length
    if begin + entry.packed > entry.end:
        raise UnreadableError("damaged inside the zip: it reaches beyond the archive's end")
    file.seek(begin)
    left = entry.packed
    while left:
        piece = file.read(min(left, piece_size))
        if not piece:
            raise UnreadableError("damaged inside the zip: it ends too early")
        left -= len(piece)
        yield piece


def _unpack(pieces: Iterator[bytes], entry: ZipEntry, length: int) -> Iterator[bytes]:
    if entry.method == _STORED:
        yield from pieces
        return
    inflater, total = _inflater(-zlib.MAX_WBITS), 0
    for piece in pieces:
        rest = piece
        while rest and not inflater.eof:
            try:
                block = inflater.decompress(rest, min(length + 1 - total, _PIECE))
            except zlib.error as error:
                raise UnreadableError(f"damaged inside the zip: {error}") from error
            total += len(block)
            yield block
            if total > length:
                return
            rest = inflater.unconsumed_tail
    if not inflater.eof and total <= length:
        yield inflater.flush()


def _read_exactly(file: Any, size: int) -> bytes:
    content: bytes = file.read(size)
    if len(content) != size:
        raise ZipDamageError("it ends too early")
    return content
