"""The entries of a zip archive, by its central directory, and their content.

Python's `zipfile` holds a kilobyte of each entry, trusts the sizes that an archive tells, and takes
one that is damaged for the end of the reading. Here the directory is read a piece at a time, and an
entry that cannot be read leaves the others as they are. Follows PKWARE's APPNOTE 6.3.9.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_END = struct.Struct("<4s4H2LH")  # signature, disks, entries, directory's size and offset, comment
_END64_PLACE = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_LONGEST_COMMENT = 0xFFFF
_FULL = 0xFFFF_FFFF  # of a field that stands in the zip64 record instead
_PIECE = 1 << 20
_STORED, _DEFLATED = 0, 8
_inflater = zlib.decompressobj
_METHODS = {9: "Deflate64", 12: "bzip2", 14: "LZMA", 93: "Zstandard", 95: "xz", 99: "AES"}
_ENCRYPTED, _UTF8 = 0x1 | 0x40, 0x800
_UNIX, _TYPE, _LINK, _FOLDER = 3, 0o170000, 0o120000, 0o040000


class ZipDamageError(Exception):
    """An archive whose directory cannot be read."""


class ZipEntryError(Exception):
    """One entry whose content cannot be read."""


@dataclass(frozen=True, slots=True)
class ZipEntry:
    """A file or folder of the archive, as the central directory has it.

    `name` has forward slashes, and ends with one if it is a folder. `packed` and `size` are bytes
    before and after unpacking, as the archive tells them. `offset` is that of the local header.
    `end` is where the data end at the latest. `refusal` says why the content cannot be read; empty
    if nothing is known against it.
    """

    name: str
    packed: int
    size: int
    method: int
    crc: int
    offset: int
    end: int
    refusal: str

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder."""
        return self.name.endswith("/")


@dataclass(frozen=True)
class _Directory:
    """Where the central directory is, how many entries it names, and what lies before the zip."""

    start: int
    size: int
    entries: int
    counts_wrap: bool  # whether the number is what is left of a division by 65536
    shift: int  # bytes before the archive, as a program that unpacks itself has them


def entries_of(file: Any) -> Iterator[ZipEntry]:
    """The entries of a seekable `file` in the order of its central directory.

    Raises `ZipDamageError` where there is no directory, or it is damaged, after the entries before
    the damage. Of `file` pieces of a megabyte are in memory.
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
    tail_start = max(0, length - _END.size - _LONGEST_COMMENT)
    file.seek(tail_start)
    tail: bytes = file.read(length - tail_start)
    place = len(tail)
    while (place := tail.rfind(b"PK\5\6", 0, place)) >= 0:
        if place + _END.size <= len(tail):
            _, disk, first, _, entries, size, offset, comment = _END.unpack_from(tail, place)
            if place + _END.size + comment == len(tail):
                break
    else:
        raise ZipDamageError("it has no end-of-archive record: no zip, cut off, or more behind it")
    end = tail_start + place
    found = _find_zip64(file, end)
    if found:
        end, entries, size, offset = found
        return _checked(end, entries, size, offset, wraps=False)
    if disk or first:
        raise ZipDamageError("it is one of several files that make an archive together")
    return _checked(end, entries, size, offset, wraps=True)


def _checked(end: int, entries: int, size: int, offset: int, *, wraps: bool) -> _Directory:
    shift = end - size - offset
    if shift < 0:
        raise ZipDamageError("its directory does not lie where its end says")
    return _Directory(end - size, size, entries, wraps, shift)


def _find_zip64(file: Any, end: int) -> tuple[int, int, int, int] | None:
    """Place of the zip64 end record, entries, directory's size and offset; None without one."""
    if end < _END64_PLACE.size + _END64.size:
        return None
    file.seek(end - _END64_PLACE.size)
    signature, _, told, _ = _END64_PLACE.unpack(_exactly(file, _END64_PLACE.size))
    if signature != b"PK\6\7":
        return None
    # Where bytes stand before the archive the told place is short by them.
    for place in (told, end - _END64_PLACE.size - _END64.size):
        if 0 <= place <= end - _END64_PLACE.size - _END64.size:
            file.seek(place)
            record = _END64.unpack(_exactly(file, _END64.size))
            if record[0] == b"PK\6\6":
                return place, record[7], record[8], record[9]
    raise ZipDamageError("its zip64 end record is missing")


def _entry(piece: bytes, at: int, directory: _Directory) -> tuple[ZipEntry, int]:
    """The entry at `at` of a piece of the directory, and where the next one begins."""
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
    size, packed, offset = _wide(extra, size, packed, offset)
    name = _name(piece[begin:middle], utf8=bool(flags & _UTF8))
    mode = attributes >> 16 & _TYPE if made_by >> 8 == _UNIX else 0
    if mode == _FOLDER and not name.endswith("/"):
        name += "/"
    refusal = "a link, which is not followed" if mode == _LINK else _refusal(flags, method)
    offset += directory.shift
    entry = ZipEntry(name, packed, size, method, crc, offset, directory.start, refusal)
    return entry, end


def _wide(extra: bytes, *narrow: int) -> tuple[int, ...]:
    """Size, packed size and offset: those that are full stand in the zip64 record, in order."""
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
    """UTF-8 where it is that, also without the flag that says so; else the code page of DOS.

    Backslashes of archives from Windows are taken for slashes.
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
        known = _METHODS.get(method, f"method {method}")
        return f"packed inside the zip by {known}; stored and deflated entries are read"
    return ""


def read_entry(file: Any, entry: ZipEntry, at_most: int | None = None) -> bytes:
    """The content of an entry of the seekable `file`, or its first `at_most` bytes.

    Raises `ZipEntryError` where it cannot be read, or is not as long as the archive says, or, of a
    whole one, its checksum is another. Never makes more bytes than the entry's `size` and one.
    """
    if entry.refusal:
        raise ZipEntryError(entry.refusal)
    wanted = entry.size if at_most is None else min(at_most, entry.size)
    pieces, total, crc = [], 0, 0
    piece_size = _PIECE if at_most is None else 2 * at_most
    for piece in _unpacked(_packed(file, entry, piece_size), entry, wanted):
        pieces.append(piece)
        total += len(piece)
        crc = zlib.crc32(piece, crc)
        if total > wanted:
            break
    if at_most is not None:
        return b"".join(pieces)[:wanted]
    if total != entry.size:
        more = "more" if total > entry.size else f"{total}"
        raise ZipEntryError(f"damaged inside the zip: {more} of {entry.size} bytes")
    if crc != entry.crc:
        raise ZipEntryError("damaged inside the zip: its checksum does not fit")
    return b"".join(pieces)


def _packed(file: Any, entry: ZipEntry, piece_size: int) -> Iterator[bytes]:
    """The packed bytes of an entry, by its local header."""
    file.seek(min(entry.offset, entry.end))
    header = file.read(_LOCAL.size)
    if len(header) < _LOCAL.size or header[:4] != b"PK\3\4":
        raise ZipEntryError("damaged inside the zip: there is no entry where it should begin")
    name_length, extra_length = _LOCAL.unpack(header)[9:]
    begin = entry.offset + _LOCAL.size + name_length + extra_length
    if begin + entry.packed > entry.end:
        raise ZipEntryError("damaged inside the zip: it reaches beyond the archive's end")
    file.seek(begin)
    left = entry.packed
    while left:
        piece = file.read(min(left, piece_size))
        if not piece:
            raise ZipEntryError("damaged inside the zip: it ends too early")
        left -= len(piece)
        yield piece


def _unpacked(pieces: Iterator[bytes], entry: ZipEntry, wanted: int) -> Iterator[bytes]:
    if entry.method == _STORED:
        yield from pieces
        return
    inflater, total = _inflater(-zlib.MAX_WBITS), 0
    for piece in pieces:
        rest = piece
        while rest and not inflater.eof:
            try:
                block = inflater.decompress(rest, min(wanted + 1 - total, _PIECE))
            except zlib.error as error:
                raise ZipEntryError(f"damaged inside the zip: {error}") from error
            total += len(block)
            yield block
            if total > wanted:
                return
            rest = inflater.unconsumed_tail
    if not inflater.eof and total <= wanted:
        yield inflater.flush()


def _exactly(file: Any, size: int) -> bytes:
    content: bytes = file.read(size)
    if len(content) != size:
        raise ZipDamageError("it ends too early")
    return content
