from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from pipeline.images import ImageLimits, Rejection, RejectReason, decode
from tests.images.encoded import FILES, encode, flat, picture, png_file


def reason_of(content: bytes, limits: ImageLimits | None = None) -> RejectReason:
    with pytest.raises(Rejection) as caught:
        decode(content, limits)
    assert caught.value.detail
    return caught.value.reason


def distance(image: Image.Image, other: Image.Image) -> float:
    return float(np.abs(np.asarray(image, float) - np.asarray(other.convert("RGB"), float)).mean())


LOSSLESS = (
    *("png", "png_rgba", "webp_lossless", "tiff", "tiff_lzw", "tiff_big", "bmp", "jp2", "j2k"),
    *("ppm", "ppm_plain", "ppm_16", "ppm_pam", "ppm_pfm", "tga", "tga_rle", "psd"),
)


@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_formats_keep_every_pixel(name: str) -> None:
    assert distance(decode(FILES[name]), picture()) == 0


@pytest.mark.parametrize(
    "name",
    ["jpeg", "jpeg_progressive", "jpeg_cmyk", "webp", "gif", "png_palette", "avif", "heif"],
)
def test_lossy_formats_keep_the_colours(name: str) -> None:
    image = decode(FILES[name])
    assert image.mode == "RGB"
    assert distance(image, picture()) < 12


@pytest.mark.parametrize("name", ["GIF", "PNG", "WEBP"])
def test_the_first_frame_is_decoded(name: str) -> None:
    red, blue = flat("RGB", (250, 0, 0)), flat("RGB", (0, 0, 250))
    content = encode(red, name, save_all=True, append_images=[blue])
    assert decode(content).getpixel((5, 5))[0] > 240  # type: ignore[index]


def jpeg_with_orientation(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(picture(), "JPEG", exif=exif, quality=95)


UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_applied(orientation: int) -> None:
    stored = np.asarray(decode(encode(picture(), "JPEG", quality=95)))
    upright = np.asarray(decode(jpeg_with_orientation(orientation)))
    assert np.array_equal(upright, UPRIGHT[orientation](stored))


@pytest.mark.parametrize("name", ["PNG", "WEBP", "TIFF"])
def test_orientation_is_applied_once_per_format(name: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"lossless": True} if name == "WEBP" else {}
    upright = decode(encode(picture(), name, exif=exif, **options))
    assert np.array_equal(np.asarray(upright), np.rot90(np.asarray(picture()), -1))


def test_malformed_exif_keeps_the_image() -> None:
    content = jpeg_with_orientation(6)
    start = content.index(b"Exif\x00\x00") + 6
    rng = np.random.default_rng(3)
    for _ in range(200):
        broken = bytearray(content)
        for place in rng.integers(start, start + 24, 4):
            broken[place] = rng.integers(256)
        assert decode(bytes(broken)).mode == "RGB"


def png_header_only(width: int, height: int) -> bytes:
    return png_file(width, height, depth=8, colour_type=2, pixels=b"")


@pytest.mark.parametrize("side", [8001, 12_000, 60_000])
def test_a_bomb_is_refused_by_its_header(side: int) -> None:
    assert reason_of(png_header_only(side, side)) is RejectReason.TOO_LARGE


def test_pillows_own_pixel_limit_is_off() -> None:
    high = ImageLimits(max_pixels=10**12)
    assert reason_of(png_header_only(20_000, 20_000), high) is not RejectReason.TOO_LARGE


def test_the_pixel_limit_is_inclusive() -> None:
    content = encode(picture(80, 96), "PNG")
    assert decode(content, ImageLimits(max_pixels=80 * 96)).size == (80, 96)
    assert reason_of(content, ImageLimits(max_pixels=80 * 96 - 1)) is RejectReason.TOO_LARGE


def test_a_side_under_the_minimum_is_too_small() -> None:
    assert reason_of(encode(picture(31, 90), "PNG")) is RejectReason.TOO_SMALL
    assert decode(encode(picture(32, 90), "PNG")).size == (32, 90)


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_anywhere_is_truncated(name: str) -> None:
    content = FILES[name]
    # Some formats need no end mark; a TIFF may have its directory at the end.
    for length in range(32, len(content) - 200, len(content) // 40):
        assert reason_of(content[:length]) is RejectReason.TRUNCATED, length


# The last number of a plain PPM is still a number without its last digits.
@pytest.mark.parametrize("name", [name for name in FILES if name != "ppm_plain"])
def test_missing_last_bytes_never_change_pixels(name: str) -> None:
    content = FILES[name]
    whole = np.asarray(decode(content))
    for length in range(len(content) - 200, len(content)):
        try:
            pixels = np.asarray(decode(content[:length]))
        except Rejection:
            continue
        assert np.array_equal(pixels, whole), length


def test_an_empty_file_is_truncated() -> None:
    assert reason_of(b"") is RejectReason.TRUNCATED


@pytest.mark.parametrize(
    "content", [b"\x00", b"%PDF-1.7", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"RIFF....WAVE"]
)
def test_other_formats_are_unsupported(content: bytes) -> None:
    assert reason_of(content) is RejectReason.UNSUPPORTED_FORMAT


def test_pillows_other_formats_are_unsupported() -> None:
    assert reason_of(encode(picture(), "PCX")) is RejectReason.UNSUPPORTED_FORMAT
    assert reason_of(encode(picture(), "ICO")) is RejectReason.UNSUPPORTED_FORMAT


def test_damage_inside_a_complete_file_is_undecodable() -> None:
    content = bytearray(FILES["png"])
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(64)
    assert reason_of(bytes(content)) is RejectReason.UNDECODABLE


@pytest.mark.parametrize("name", FILES)
def test_mutated_files_decode_or_are_rejected(name: str) -> None:
    rng = np.random.default_rng(11)
    content = FILES[name]
    limits = ImageLimits(max_pixels=1_000_000)
    refused = 0
    for _ in range(60):
        broken = bytearray(content)
        span = len(content) if rng.random() < 0.5 else 200  # headers matter most
        for place in rng.integers(0, span, rng.integers(1, 12)):
            broken[place] = rng.integers(256)
        try:
            assert decode(bytes(broken), limits).mode == "RGB"
        except Rejection:
            refused += 1
    assert refused > 0
