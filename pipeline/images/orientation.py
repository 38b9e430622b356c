"""Orientation of an image, from its metadata, and the transpose that makes it upright."""

from __future__ import annotations

from typing import Any

from PIL import Image

_TAG = 0x0112
_TRANSPOSES = {  # EXIF orientation -> transpose of the stored pixels
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def orientation_of(stored: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8, of `stored` that loading has not applied; default 1.

    Loading a TIFF applies it. For HEIC the container's rotation counts, not EXIF (ISO 23008-12,
    6.5.10), and libheif has applied it. For AVIF Pillow reports the container's rotation as the
    EXIF value.
    """
    if stored.format == "HEIF":
        return 1
    if stored.format == "AVIF":
        stored.info.pop("xmp", None)  # Pillow would use its orientation if EXIF has none
    try:
        return parse_orientation(stored.getexif().get(_TAG))
    except Exception:  # noqa: BLE001 - malformed EXIF raises any type, and the pixels are good
        return 1


def parse_orientation(value: Any) -> int:
    """Return the `value` of an orientation tag as 1 to 8; 1 for an invalid value.

    The tag is a SHORT, but some cameras and editors write ASCII ("6"), BYTE or another type.
    """
    if isinstance(value, tuple) and value:
        value = value[0]
    if isinstance(value, str):
        value = value.encode("latin-1", "replace")
    if isinstance(value, bytes):
        value = value.strip(b"\x00 ")
        value = int(value) if value.isdigit() else int.from_bytes(value[:1], "big")
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError, ZeroDivisionError):
        return 1
    if ord("1") <= number <= ord("8"):  # a character stored as a number
        return number - ord("0")
    return number if number == value and 1 <= number <= 8 else 1


def turned_upright(pixels: Image.Image, orientation: int) -> Image.Image:
    """Return `pixels` upright, by their EXIF `orientation`."""
    turn = _TRANSPOSES.get(orientation)
    return pixels if turn is None else pixels.transpose(turn)
