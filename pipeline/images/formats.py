"""Which formats are read, and whether a file of one stops before its end."""

from __future__ import annotations

import struct
from collections.abc import Iterator

SUPPORTED = "JPEG, PNG, WebP, GIF, TIFF, BMP, AVIF, HEIC, JPEG 2000, PNM, PAM, PFM, TGA, PSD"
# What these decoders make of half a file is half an image, without a word: they are asked before.
UNSAFE_WHEN_CUT = {"JPEG2000", "AVIF", "HEIF"}
_CODESTREAM = b"\xff\x4f\xff\x51"
_END_OF_CODESTREAM = b"\xff\xd9"  # no packet of a codestream holds these two bytes


def is_cut_short(content: bytes, name: str) -> bool:
    """True where a file of format `name` lacks its end, by that format's own bookkeeping.

    Tells a broken download (worth fetching again) from a damaged file. TIFF is asked for its
    directory alone: that says where its pixels end. TGA and PSD have no bookkeeping; their decoders
    say that the pixels end early.
    """
    match name:
        case "JPEG":  # end of image marker; cameras pad behind it
            return b"\xff\xd9" not in content[-1024:]
        case "PNG":
            return b"IEND" not in content[-1024:]
        case "GIF":
            return not content.rstrip(b"\x00").endswith(b";")
        case "WEBP":
            return len(content) < 12 or struct.unpack("<I", content[4:8])[0] + 8 > len(content)
        case "BMP":
            return len(content) < 26 or struct.unpack("<I", content[2:6])[0] > len(content)
        case "TIFF":
            return _tiff_directory_is_missing(content)
        case "AVIF" | "HEIF":
            return _boxes_are_missing(content, {b"meta", b"moov"}, {b"mdat", b"meta", b"moof"})
        case "JPEG2000":
            return _codestream_is_missing(content)
    return False


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


def _boxes_are_missing(content: bytes, heads: set[bytes], bodies: set[bytes]) -> bool:
    """Whether a box reaches behind the end, or there is none of `heads` or none of `bodies`."""
    found = list(boxes(content))
    kinds = {kind for kind, _, _ in found}
    last = found[-1][2] if found else 0
    return (
        last > len(content)
        or len(content) - last in range(1, 8)
        or not (kinds & heads and kinds & bodies)
    )


def _codestream_is_missing(content: bytes) -> bool:
    if content.startswith(_CODESTREAM):
        return _END_OF_CODESTREAM not in content[-1024:]
    for kind, body, stop in boxes(content):
        if kind == b"jp2c":
            end = min(stop, len(content))
            return (
                stop > len(content)
                or content.find(_END_OF_CODESTREAM, max(body, end - 1024), end) < 0
            )
    return True


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
