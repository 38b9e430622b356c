from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.images import decode
from pipeline.images.orientation import parse_orientation
from tests.images.encoded import encode, heif_file, picture, tiff_file

TURNED = np.rot90(np.asarray(picture()), -1)
LOSSLESS: dict[str, dict[str, Any]] = {"PNG": {}, "WEBP": {"lossless": True}}


def exif(kind: int, count: int, value: bytes, order: str = "<") -> bytes:
    """Return EXIF with only an orientation, stored as TIFF type `kind`."""
    mark = b"II*\x00" if order == "<" else b"MM\x00*"
    entry = struct.pack(f"{order}HHI", 0x0112, kind, count) + value.ljust(4, b"\x00")
    head = mark + struct.pack(f"{order}IH", 8, 1)
    return b"Exif\x00\x00" + head + entry + bytes(4)


ASCII, BYTE, UNDEFINED, LONG = (2, 2, b"6"), (1, 1, b"\x06"), (7, 1, b"\x06"), (4, 1, b"\x06")
TYPES = [ASCII, (2, 1, b"6"), (2, 1, b"\x06"), BYTE, (1, 2, b"\x06\x00"), UNDEFINED, LONG]


@pytest.mark.parametrize("name", LOSSLESS)
@pytest.mark.parametrize("value", TYPES)
def test_an_orientation_of_any_type_is_applied(value: tuple[int, int, bytes], name: str) -> None:
    content = encode(picture(), name, exif=exif(*value), **LOSSLESS[name])
    assert np.array_equal(decode(content), TURNED)


@pytest.mark.parametrize("value", TYPES)
def test_a_jpeg_is_turned_by_any_type(value: tuple[int, int, bytes]) -> None:
    stored = decode(encode(picture(), "JPEG", quality=95))
    upright = decode(encode(picture(), "JPEG", quality=95, exif=exif(*value)))
    assert np.array_equal(upright, np.rot90(np.asarray(stored), -1))


@pytest.mark.parametrize("order", ["<", ">"])
def test_shorts_are_read_in_both_orders(order: str) -> None:
    content = encode(picture(), "PNG", exif=exif(3, 1, struct.pack(f"{order}H", 6), order))
    assert np.array_equal(decode(content), TURNED)


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
@pytest.mark.parametrize("value", [6, ord("6")])  # as a number, as a character
def test_a_tiff_is_turned_once(value: int, kind: type) -> None:
    values = np.asarray(picture()).astype(kind)
    content = tiff_file(values, tags={0x0112: (6,)})
    if value != 6:  # the tag's type becomes ASCII, its value "6"
        place = content.index(struct.pack("<HHI", 0x0112, 3, 1))
        ascii_tag = struct.pack("<HHI", 0x0112, 2, 1) + b"6\x00\x00\x00"
        content = content[:place] + ascii_tag + content[place + 12 :]
    assert np.array_equal(decode(content), TURNED)


@pytest.mark.parametrize(
    "value",
    [0, 9, -1, 6.5, "", "x", "66", b"", b"\x00", b"\x09", None, (), object(), float("nan"), 2**70],
)
def test_invalid_orientations_turn_nothing(value: Any) -> None:
    assert parse_orientation(value) == 1


@pytest.mark.parametrize("value", [6, 6.0, "6", "6\x00", " 6", b"\x06", b"6\x00", (6, 6), "\x06"])
def test_other_types_of_six_are_six(value: Any) -> None:
    assert parse_orientation(value) == 6


def difference(image: Image.Image, expected: Any) -> float:
    assert image.size == (expected.shape[1], expected.shape[0])
    return float(np.abs(np.asarray(image).astype(int) - expected).mean())


def tag(orientation: int) -> Image.Exif:
    """Return EXIF with only an orientation; Pillow removes it if the container has the same."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["AVIF", "HEIF"])
def test_container_rotation_is_applied_once(name: str, orientation: int) -> None:
    if name == "AVIF":
        content = encode(picture(), name, exif=tag(orientation), quality=95)
        plain = encode(picture(), name, quality=95)
    else:
        content = heif_file(picture(), exif=tag(orientation).tobytes())
        plain = heif_file(picture())
    # Like a format whose container has no rotation.
    expected = np.asarray(decode(encode(decode(plain), "PNG", exif=tag(orientation))))
    assert difference(decode(content), expected) < 2


def with_exif(name: str, orientation: int, container: int) -> bytes:
    """Return a file whose EXIF and container have different orientations."""
    # Writers keep both equal: write another tag, and rename it to the orientation afterwards.
    other = exif(3, 1, bytes([orientation])).replace(b"\x12\x01", b"\x03\x01")
    data = Image.Exif()
    data.load(other)
    data[0x0112] = container
    if name == "AVIF":
        content = encode(picture(), name, exif=data)
    else:
        content = heif_file(picture(), exif=data.tobytes())
    place = content.index(struct.pack("<HHIH", 0x0103, 3, 1, orientation))
    return content[:place] + b"\x12\x01" + content[place + 2 :]


@pytest.mark.parametrize("name", ["AVIF", "HEIF"])
@pytest.mark.parametrize(("orientation", "container"), [(6, 1), (6, 6), (1, 6), (3, 6)])
def test_the_container_overrides_exif(name: str, orientation: int, container: int) -> None:
    plain = encode(picture(), name) if name == "AVIF" else heif_file(picture())
    expected = np.rot90(np.asarray(decode(plain)), -1 if container == 6 else 0)
    assert difference(decode(with_exif(name, orientation, container)), expected) < 2


def test_xmp_does_not_turn_an_avif() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6"/></x:xmpmeta>'
    image = decode(encode(picture(), "AVIF", xmp=xmp))
    assert image.size == picture().size
