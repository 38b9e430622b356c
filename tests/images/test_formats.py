from __future__ import annotations

import struct

import pytest

from pipeline.images.formats import is_cut_short
from pipeline.storage.file_types import sniff
from tests.images.encoded import FILES, encode, picture

PILLOW_NAME = {"jp2": "JPEG2000", "j2k": "JPEG2000"}


@pytest.mark.parametrize("name", FILES)
def test_formats_are_recognised_by_content(name: str) -> None:
    kind = name.split("_")[0]
    assert sniff(FILES[name]) == PILLOW_NAME.get(kind, kind.upper())


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        *(("TGA", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA")),
        *(("PPM", mode) for mode in ("1", "L", "I", "RGB", "F")),
        *(("JPEG2000", mode) for mode in ("L", "LA", "RGB", "RGBA")),
        *(("AVIF", mode) for mode in ("RGB", "RGBA")),
    ],
)
def test_the_first_kilobyte_identifies_the_format(name: str, mode: str) -> None:
    assert sniff(encode(picture().convert(mode), name)[:1024]) == name


@pytest.mark.parametrize("order", ["<", ">"])
def test_big_tiff_is_a_tiff(order: str) -> None:
    assert sniff(encode(picture(), "TIFF", big_tiff=True)) == "TIFF"
    start = b"II" if order == "<" else b"MM"
    assert sniff(start + struct.pack(f"{order}HHHQ", 43, 8, 0, 16)) == "TIFF"


def brand_box(*brands: bytes) -> bytes:
    body = brands[0] + bytes(4) + b"".join(brands[1:])
    return struct.pack(">I", len(body) + 8) + b"ftyp" + body


@pytest.mark.parametrize(
    ("brands", "name"),
    [
        ((b"heic", b"mif1", b"heic"), "HEIF"),
        ((b"mif1", b"miaf", b"avif"), "AVIF"),
        ((b"mif1", b"miaf", b"heic"), "HEIF"),
        ((b"avis", b"msf1"), "AVIF"),
        ((b"isom", b"mp41", b"heic"), None),
        ((b"qt  ", b"qt  "), None),
    ],
)
def test_brands_identify_the_codec(brands: tuple[bytes, ...], name: str | None) -> None:
    assert sniff(brand_box(*brands)) == name


def test_a_tga_footer_identifies_the_format() -> None:
    content = bytearray(encode(picture(), "TGA"))
    content[5] = 9  # entries of a missing colour map
    assert content.endswith(b"TRUEVISION-XFILE.\x00")
    assert sniff(bytes(content)) == "TGA"
    assert sniff(bytes(content[:1024])) is None


TEXTS = (b"P3 is the third part", b"P5", b"P7 332", b"Party", b"P6\n# by hand\n")


@pytest.mark.parametrize("content", [b"", b"\x89PN", b"RIFF", b"hello", b"\x00" * 64, *TEXTS])
def test_other_bytes_have_no_format(content: bytes) -> None:
    assert sniff(content) is None


@pytest.mark.parametrize("name", FILES)
def test_a_whole_file_is_not_cut_short(name: str) -> None:
    kind = sniff(FILES[name])
    assert kind is not None
    assert not is_cut_short(FILES[name], kind)


@pytest.mark.parametrize(
    "name",
    ["jpeg", "png", "webp", "gif", "bmp", "tiff", "tiff_big", "avif", "heif", "jp2", "j2k"],
)
def test_half_a_file_is_cut_short(name: str) -> None:
    half = FILES[name][: len(FILES[name]) // 2]
    kind = sniff(half)
    assert kind is not None
    # Pillow writes the directory of a TIFF first: its strips show that the end is missing.
    assert is_cut_short(half, kind) is (not name.startswith("tiff"))
    assert is_cut_short(half[:20], kind)
