from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.images import Rejection, RejectReason, decode
from pipeline.images.colour import scale_samples
from tests.images.encoded import encode, flat, png_file


def pixel(content: bytes) -> tuple[int, ...]:
    image = decode(content)
    assert image.mode == "RGB"
    value = image.getpixel((20, 20))
    assert isinstance(value, tuple)
    return value


@pytest.mark.parametrize("name", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled(name: str) -> None:
    levels = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    image = decode(encode(Image.fromarray(levels), name))
    assert np.array_equal(np.asarray(image)[..., 1], np.rint(levels / 257).astype(np.uint8))


@pytest.mark.parametrize("level", [128 * 257, 200])
@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bit_tiffs_are_scaled_in_both_orders(order: str, level: int) -> None:
    content = encode(Image.fromarray(np.full((40, 40), level, f"{order}u2")), "TIFF")
    assert content[:2] == (b"II" if order == "<" else b"MM")
    assert pixel(content) == (round(level / 257),) * 3


@pytest.mark.parametrize("top", [1.0, 255.0, 65535.0])
def test_float_tiffs_use_their_smallest_range(top: float) -> None:
    values = np.linspace(0, top, 64 * 64, dtype=np.float32).reshape(64, 64)
    grey = np.asarray(decode(encode(Image.fromarray(values), "TIFF")))[..., 0]
    assert np.abs(grey - values * 255 / top).max() <= 0.51


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_float_tiffs_are_rejected(bad: float) -> None:
    values = np.full((40, 40), 0.5, np.float32)
    values[3, 4] = bad
    with pytest.raises(Rejection) as caught:
        decode(encode(Image.fromarray(values), "TIFF"))
    assert caught.value.reason is RejectReason.NOT_FINITE


def test_samples_of_unknown_range_are_refused() -> None:
    values = np.full((40, 40), 1e6, np.float32)
    with pytest.raises(Rejection) as caught:
        decode(encode(Image.fromarray(values), "TIFF"))
    assert caught.value.reason is RejectReason.UNSUPPORTED_FORMAT


def test_32_bit_integers_use_their_smallest_range() -> None:
    assert scale_samples(np.array([0, 257 * 9, 65535], np.int32)).tolist() == [0, 9, 255]
    assert scale_samples(np.array([-5, 9, 255], np.int32)).tolist() == [0, 9, 255]


def test_1_bit_images_are_black_and_white() -> None:
    assert pixel(encode(flat("1", 1), "PNG")) == (255, 255, 255)
    assert pixel(encode(flat("1", 0), "TIFF")) == (0, 0, 0)


def test_grey_images_get_three_equal_channels() -> None:
    assert pixel(encode(flat("L", 77), "PNG")) == (77, 77, 77)


def test_palette_colours_are_looked_up() -> None:
    assert pixel(encode(flat("RGB", (10, 200, 30)).quantize(4), "PNG")) == (10, 200, 30)


@pytest.mark.parametrize("alpha", [0, 128, 255])
@pytest.mark.parametrize("name", ["PNG", "WEBP", "TIFF"])
def test_rgba_is_composited_on_white(name: str, alpha: int) -> None:
    options: dict[str, Any] = {"lossless": True, "exact": True} if name == "WEBP" else {}
    content = encode(flat("RGBA", (200, 100, 0, alpha)), name, **options)
    expected = [255 + (value - 255) * alpha / 255 for value in (200, 100, 0)]
    assert pixel(content) == pytest.approx(expected, abs=1)


def test_grey_with_alpha_is_composited_on_white() -> None:
    assert pixel(encode(flat("LA", (0, 0)), "PNG")) == (255, 255, 255)
    assert pixel(encode(flat("LA", (40, 255)), "PNG")) == (40, 40, 40)


@pytest.mark.parametrize("name", ["PNG", "GIF"])
def test_a_transparent_palette_entry_is_white(name: str) -> None:
    image = flat("P", 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.paste(1, (0, 0, 10, 10))
    content = encode(image, name, transparency=0)
    assert pixel(content) == (255, 255, 255)
    assert decode(content).getpixel((5, 5)) == (0, 0, 255)


@pytest.mark.parametrize(
    ("mode", "colour", "key"), [("L", 9, 9), ("RGB", (9, 8, 7), (9, 8, 7)), ("I;16", 900, 900)]
)
def test_a_png_transparent_colour_is_white(mode: str, colour: Any, key: Any) -> None:
    assert pixel(encode(flat(mode, colour), "PNG", transparency=key)) == (255, 255, 255)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("colour", [(220, 40, 30), (255, 255, 255), (0, 0, 0)])
def test_adobe_cmyk_jpeg_is_not_inverted(colour: tuple[int, int, int], progressive: bool) -> None:
    content = encode(flat("RGB", colour).convert("CMYK"), "JPEG", progressive=progressive)
    assert pixel(content) == pytest.approx(colour, abs=4)


def test_16_bit_rgb_png_is_scaled() -> None:
    row = b"\x00" + struct.pack(">HHH", 257 * 200, 257 * 9, 65535) * 40
    content = png_file(40, 40, depth=16, colour_type=2, pixels=row * 40)
    assert pixel(content) == pytest.approx((200, 9, 255), abs=1)


def test_a_16_bit_transparent_colour_is_ignored() -> None:
    row = b"\x00" + struct.pack(">HHH", 0, 0, 0) * 40
    key = struct.pack(">HHH", 0x0100, 0x0100, 0x0100)  # whose lower halves are black
    content = png_file(40, 40, depth=16, colour_type=2, pixels=row * 40, key=key)
    assert pixel(content) == (0, 0, 0)
