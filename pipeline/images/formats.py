"""Which format the bytes are, by their content, and whether they stop before the file's end."""

from __future__ import annotations

import struct

SUPPORTED = "JPEG, PNG, WebP, GIF, TIFF, BMP"


def is_cut_short(content: bytes, name: str) -> bool:
    """True where a file of format `name` lacks its end, by that format's own bookkeeping.

    Asked only of files that failed to decode, to tell a broken download (worth fetching again)
    from a damaged file. TIFF is asked for its directory alone: that says where its pixels end.
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
        case _:
            return _tiff_directory_is_missing(content)


def _tiff_directory_is_missing(content: bytes) -> bool:
    order = "<" if content[:2] == b"II" else ">"
    if len(content) < 8:
        return True
    start = struct.unpack(f"{order}I", content[4:8])[0]
    if start + 2 > len(content):
        return True
    entries = struct.unpack(f"{order}H", content[start : start + 2])[0]
    return bool(start + 2 + 12 * entries + 4 > len(content))
