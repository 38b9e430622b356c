"""Which formats are read, and whether a file of one stops before its end."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping

SUPPORTED = "JPEG, PNG, WebP, GIF, TIFF, BMP, AVIF, HEIC, JPEG 2000, PNM, PAM, PFM, TGA, PSD"
# What these decoders make of half a file is half an image, without a word: they are asked before.
UNSAFE_WHEN_CUT = {"JPEG2000", "AVIF", "HEIF"}
_CODESTREAM = b"\xff\x4f\xff\x51"
_END_OF_CODESTREAM = b"\xff\xd9"  # no packet of a codestream holds these two bytes

_HEADS, _BODIES = {b"meta", b"moov"}, {b"mdat", b"meta", b"moof"}  # of HEIF files


def is_cut_short(content: bytes, name: str) -> bool:
    """True where a file of format `name` lacks its end, by that format's own bookkeeping.

    Tells a broken download (worth fetching again) from a damaged file. TIFF is asked for its
    directory alone: that says where its pixels end. TGA and PSD are asked for what precedes the
    pixels; their decoders say that these end early. Netpbm's reader says all itself.
    """
    test = _CUT_SHORT.get(name)
    return test is not None and test(content)


def boxes(
    content: bytes, start: int = 0, end: int | None = None
) -> Iterator[tuple[bytes, int, int]]:
    """The boxes of an ISO media or JP2 file from `start` on: type, where its body starts and ends.

    The body of the last one may end behind the content; a box of less than its own header ends the
    list.
    """
    end = len(content) if end is None else end
    while start + 8 <= end:
        size, kind = struct.unpack_from(">I4s", content, start)
        body = start + 8
        if size == 1 and start + 16 <= end:
            (size,) = struct.unpack_from(">Q", content, body)
            body += 8
        stop = end if size == 0 else start + size
        if stop < body:
            return
        yield kind, body, stop
        start = stop


def _boxes_are_missing(content: bytes) -> bool:
    """Whether the description or the pixels of an image are missing, or end early.

    Phones append what they like behind these, such as a video, not always in boxes.
    """
    kinds = set()
    for kind, _, end in boxes(content):
        if kind in _HEADS | _BODIES:
            kinds.add(kind)
            if end > len(content):
                return True
    return not (kinds & _HEADS and kinds & _BODIES)


def _codestream_is_missing(content: bytes) -> bool:
    """Whether a JPEG 2000 file ends before its codestream does, or before that begins."""
    if content.startswith(_CODESTREAM):
        return _END_OF_CODESTREAM not in content[-1024:]
    end = 0
    for kind, body, end in boxes(content):
        if kind == b"jp2c" and end <= len(content):
            return content.find(_END_OF_CODESTREAM, max(body, end - 1024), end) < 0
    return end >= len(content)


def _sections_are_missing(content: bytes) -> bool:
    """Whether a Photoshop file ends before its merged image: behind a header and three sections."""
    place = 26
    for _ in range(3):
        if place + 4 > len(content):
            return True
        place += 4 + struct.unpack_from(">I", content, place)[0]
    return place + 2 > len(content)


def _tiff_directory_is_missing(content: bytes) -> bool:
    order = "<" if content[:2] == b"II" else ">"
    is_big = content[2:4] in (b"+\x00", b"\x00+")
    place, offset, count, entry = (8, "Q", "Q", 20) if is_big else (4, "I", "H", 12)
    width, count_width = struct.calcsize(offset), struct.calcsize(count)
    if len(content) < place + width:
        return True
    (start,) = struct.unpack_from(f"{order}{offset}", content, place)
    if start + count_width > len(content):
        return True
    (entries,) = struct.unpack_from(f"{order}{count}", content, start)
    return bool(start + count_width + entry * entries + width > len(content))


def _header_of_tga_is_missing(content: bytes) -> bool:
    """Whether a TGA ends in its header, a text of up to 255 bytes, or a colour map."""
    if len(content) < 18:
        return True
    mapped = int.from_bytes(content[5:7], "little") * ((content[7] + 7) // 8)
    return len(content) < 18 + content[0] + mapped * content[1]


def _ends_by_size(content: bytes, place: int, header: int, more: int = 0) -> bool:
    """Whether a file is shorter than the size that it has at `place`, and `more`."""
    if len(content) < header:
        return True
    return bool(struct.unpack_from("<I", content, place)[0] + more > len(content))


_CUT_SHORT: Mapping[str, Callable[[bytes], bool]] = {
    "JPEG": lambda content: b"\xff\xd9" not in content[-1024:],  # cameras pad behind the end mark
    "PNG": lambda content: b"IEND" not in content[-1024:],
    "GIF": lambda content: not content.rstrip(b"\x00").endswith(b";"),
    "WEBP": lambda content: _ends_by_size(content, 4, 12, 8),
    "BMP": lambda content: _ends_by_size(content, 2, 26),
    "TIFF": _tiff_directory_is_missing,
    "AVIF": _boxes_are_missing,
    "HEIF": _boxes_are_missing,
    "JPEG2000": _codestream_is_missing,
    "TGA": _header_of_tga_is_missing,
    "PSD": _sections_are_missing,
}
