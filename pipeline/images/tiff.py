"""The directory of a TIFF or BigTIFF, and whether it is a camera's raw file."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import TypeAlias

Tags: TypeAlias = Mapping[int, tuple[int, ...]]

NEW_SUBFILE_TYPE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 254, 256, 257, 258, 259, 262
FILL_ORDER, STRIP_OFFSETS, ORIENTATION, SAMPLES, ROWS_PER_STRIP = 266, 273, 274, 277, 278
STRIP_COUNTS, PLANAR, PREDICTOR, TILE_WIDTH, TILE_HEIGHT = 279, 284, 317, 322, 323
TILE_OFFSETS, TILE_COUNTS, SUB_DIRECTORIES, EXTRA_SAMPLES, SAMPLE_FORMAT = 324, 325, 330, 338, 339
PROFILE, DNG_VERSION = 34675, 50706

_TYPES = {1: "B", 2: "B", 3: "H", 4: "I", 6: "b", 7: "B", 8: "h", 9: "i", 13: "I", 16: "Q", 18: "Q"}
_MOST_ENTRIES = 4096
_REDUCED = 1  # bit of NEW_SUBFILE_TYPE: a preview of another image of the file


def byte_order(content: bytes) -> str:
    """The byte order of `content` as `struct` has it."""
    return "<" if content[:2] == b"II" else ">"


def read_tags(content: bytes) -> dict[int, tuple[int, ...]]:
    """The integer tags of the first directory; those whose values lie outside are left out."""
    order, is_big = byte_order(content), content[2:4] in (b"+\x00", b"\x00+")
    offset, count = ("Q", "Q") if is_big else ("I", "H")
    entry = struct.Struct(f"{order}HH{offset}")
    width = struct.calcsize(offset)
    tags: dict[int, tuple[int, ...]] = {}
    try:
        (start,) = struct.unpack_from(f"{order}{offset}", content, 8 if is_big else 4)
        (entries,) = struct.unpack_from(f"{order}{count}", content, start)
        start += struct.calcsize(count)
        for index in range(min(entries, _MOST_ENTRIES)):
            place = start + index * (entry.size + width)
            tag, kind, values = entry.unpack_from(content, place)
            code, place = _TYPES.get(kind, ""), place + entry.size
            size = values * struct.calcsize(f"={code}")
            if size > width:
                (place,) = struct.unpack_from(f"{order}{offset}", content, place)
            if code and place + size <= len(content):
                tags[tag] = struct.unpack_from(f"{order}{values}{code}", content, place)
    except struct.error:  # the directory is cut: what it held so far
        pass
    return tags


def is_camera_raw(content: bytes, tags: Tags) -> bool:
    """Whether the first image is the preview of sensor data (DNG, NEF, ARW, CR2, ...)."""
    kind = tags.get(NEW_SUBFILE_TYPE) or (0,)
    is_preview = bool(kind[0] & _REDUCED) and (DNG_VERSION in tags or SUB_DIRECTORIES in tags)
    return is_preview or content[8:10] == b"CR"
