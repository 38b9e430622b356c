"""Which way up an image is to be shown, from whatever its metadata say."""

from __future__ import annotations

from typing import Any

from PIL import Image

_TAG = 0x0112
_TRANSPOSES = {  # EXIF orientation -> what turns the stored pixels upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def orientation_of(stored: Image.Image) -> int:
    """The EXIF orientation, 1 to 8, that `stored` asks for and that loading has not applied.

    1 where there is none. Loading a TIFF applies it. The container of a HEIC image turns its
    pixels, whatever its EXIF says (ISO 23008-12, 6.5.10), and libheif has done so; that of an AVIF
    image is what Pillow reports in place of the EXIF value.
    """
    if stored.format == "HEIF":
        return 1
    if stored.format == "AVIF":
        stored.info.pop("xmp", None)  # Pillow would take its orientation where EXIF has none
    try:
        return parse_orientation(stored.getexif().get(_TAG))
    except Exception:  # noqa: BLE001 - malformed EXIF raises any type, and the pixels are good
        return 1


def parse_orientation(value: Any) -> int:
    """`value` of an orientation tag as 1 to 8; 1 where it is none of these.

    The tag is a SHORT. Some cameras and editors write it as ASCII ("6"), BYTE or another type.
    """
    if isinstance(value, tuple) and value:
        value = value[0]
    if isinstance(value, str):
        value = value.encode("latin-1", "replace")
    if isinstance(value, bytes):
        value = value.strip(b"\x00 ")
        value = int(value) if value.isdigit() else int.from_bytes(value[:1], "big")
    try:
        found = int(value)
    except (TypeError, ValueError, OverflowError, ZeroDivisionError):
        return 1
    if ord("1") <= found <= ord("8"):  # a character whose type was lost
        return found - ord("0")
    return found if found == value and 1 <= found <= 8 else 1


def turned_upright(pixels: Image.Image, orientation: int) -> Image.Image:
    """`pixels` as `orientation` asks for them to be shown."""
    turn = _TRANSPOSES.get(orientation)
    return pixels if turn is None else pixels.transpose(turn)
