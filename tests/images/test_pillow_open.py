from __future__ import annotations

import struct
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from PIL import AvifImagePlugin, Image

from pipeline.images import ImageLimits, Rejection, RejectReason, decode
from pipeline.images.pillow_open import HEIC_INSTALL, has_arithmetic_coding
from tests.images.encoded import ARITHMETIC_JPEG, FILES, encode, flat, heif_file, picture, psd_file


def rejection(content: bytes, limits: ImageLimits | None = None) -> Rejection:
    with pytest.raises(Rejection) as caught:
        decode(content, limits)
    return caught.value


def comment(length: int) -> bytes:
    return b"\xff\xfe" + struct.pack(">H", length + 2) + bytes(length)


@pytest.mark.parametrize("padding", [0, *range(65_100, 65_500, 50)])
def test_arithmetic_jpegs_larger_than_blocks_are_read(padding: int) -> None:
    content = ARITHMETIC_JPEG[:2] + comment(padding) + ARITHMETIC_JPEG[2:]
    assert has_arithmetic_coding(content)
    image = decode(content)
    assert image.size == (48, 40)
    assert image.getpixel((10, 10)) == pytest.approx((50, 60, 40), abs=6)
    assert image.getpixel((40, 30)) == pytest.approx((200, 180, 200), abs=6)


@pytest.mark.parametrize("name", ["jpeg", "jpeg_progressive", "jpeg_grey", "jpeg_cmyk"])
def test_other_jpegs_are_not_arithmetic(name: str) -> None:
    assert not has_arithmetic_coding(FILES[name])


def test_a_damaged_arithmetic_jpeg_names_its_coding() -> None:
    place = ARITHMETIC_JPEG.index(b"\xff\xda")
    refusal = rejection(ARITHMETIC_JPEG[:place] + b"\xff\xd9")
    assert refusal.reason is RejectReason.UNDECODABLE
    assert "arithmetic coding" in refusal.detail


def without_adobe(content: bytes) -> bytes:
    place = content.index(b"\xff\xee")
    (length,) = struct.unpack_from(">H", content, place + 2)
    assert content[place + 4 : place + 9] == b"Adobe"
    return content[:place] + content[place + 2 + length :]


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("colour", [(220, 40, 30), (255, 255, 255), (0, 0, 0), (90, 140, 200)])
def test_cmyk_without_a_marker_is_not_inverted(
    colour: tuple[int, int, int], progressive: bool
) -> None:
    inks = flat("RGB", colour).convert("CMYK")
    # Pillow writes inks like Adobe: inverted and with the marker.
    marked = encode(inks, "JPEG", progressive=progressive, quality=95)
    inverted = inks.point(lambda level: 255 - level)
    plain = without_adobe(encode(inverted, "JPEG", progressive=progressive, quality=95))
    assert decode(marked).getpixel((20, 20)) == pytest.approx(colour, abs=4)
    assert decode(plain).getpixel((20, 20)) == pytest.approx(colour, abs=4)


def test_ycck_by_adobe_has_right_colours() -> None:
    # Adobe's YCCK (transform 2 in the marker) is YCbCr of the inks, treated as RGB, and inverted
    # black. Pillow inverts all channels when it writes.
    luma = Image.new("RGB", (40, 40), (255 - 220, 255 - 40, 255 - 30)).convert("YCbCr")
    channels = [*luma.split(), Image.new("L", (40, 40), 255)]
    stored = Image.merge("CMYK", channels).point(lambda level: 255 - level)
    content = bytearray(encode(stored, "JPEG", quality=95, subsampling=0))
    place = content.index(b"Adobe") + 11
    assert content[place] == 0
    content[place] = 2
    assert decode(bytes(content)).getpixel((20, 20)) == pytest.approx((220, 40, 30), abs=6)


def test_a_missing_pillow_heif_is_named() -> None:
    program = """
import sys
sys.modules["pillow_heif"] = sys.modules["_pillow_heif"] = None
from pipeline.images import Rejection, decode
try:
    decode(sys.stdin.buffer.read())
except Rejection as rejection:
    print(rejection)
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], input=heif_file(picture()), capture_output=True, check=True
    )
    assert ran.stdout.decode().startswith("unsupported_format: it is a HEIC image")
    assert HEIC_INSTALL in ran.stdout.decode()


def test_decoders_use_one_thread() -> None:
    from pillow_heif import options

    decode(FILES["avif"])
    decode(FILES["heif"])
    assert AvifImagePlugin.DEFAULT_MAX_THREADS == 1
    assert options.DECODE_THREADS == 1


@pytest.mark.parametrize("name", ["avif", "heif", "jp2", "j2k"])
def test_decoding_twice_gives_the_same_pixels(name: str) -> None:
    assert np.array_equal(decode(FILES[name]), decode(FILES[name]))


@pytest.mark.parametrize("name", FILES)
def test_limits_hold_for_every_format(name: str) -> None:
    many = rejection(FILES[name], ImageLimits(max_pixels=80 * 96 - 1))
    assert many.reason is RejectReason.TOO_LARGE
    assert rejection(FILES[name], ImageLimits(min_side=81)).reason is RejectReason.TOO_SMALL


@pytest.mark.parametrize(("alpha", "bits", "expected"), [(0, 0, 9), (0, 8, 9), (128, 8, 132)])
def test_unused_tga_channels_are_ignored(alpha: int, bits: int, expected: int) -> None:
    content = bytearray(encode(flat("RGBA", (9, 9, 9, alpha)), "TGA"))
    content[17] = content[17] & 0xF0 | bits
    assert decode(bytes(content)).getpixel((20, 20)) == pytest.approx((expected,) * 3, abs=1)


@pytest.mark.parametrize(("layers", "expected"), [(0, 9), (2, 9), (-1, 132)])
def test_a_saved_selection_is_not_alpha(layers: int, expected: int) -> None:
    content = psd_file(flat("RGBA", (9, 9, 9, 128)), layers=layers)
    assert decode(content).getpixel((20, 20)) == pytest.approx((expected,) * 3, abs=1)


def test_psd_inks_are_not_inverted() -> None:
    content = psd_file(flat("RGB", (220, 40, 30)).convert("CMYK"))
    assert decode(content).getpixel((20, 20)) == pytest.approx((220, 40, 30), abs=1)


def test_a_16_bit_psd_says_what_to_do() -> None:
    refusal = rejection(psd_file(picture(), depth=16))
    assert refusal.reason is RejectReason.UNDECODABLE
    assert "16 bits" in refusal.detail
    assert "save it as PNG or TIFF" in refusal.detail


@pytest.mark.parametrize("trailer", [b"mpvd", b"\xf0\x11\x22\x33"])
@pytest.mark.parametrize("name", ["avif", "heif"])
def test_appended_data_is_ignored(name: str, trailer: bytes) -> None:
    content = FILES[name] + struct.pack(">I", 2**31) + trailer + b"a video"
    assert np.array_equal(decode(content), decode(FILES[name]))


def test_mpo_gives_its_first_picture() -> None:
    other: dict[str, Any] = {"save_all": True, "append_images": [flat("RGB", 0, (80, 96))]}
    image = decode(encode(picture(), "MPO", quality=95, **other))
    assert np.abs(np.asarray(image).astype(int) - np.asarray(picture())).mean() < 12
