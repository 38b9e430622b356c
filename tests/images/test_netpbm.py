from __future__ import annotations

import numpy as np
import pytest

from pipeline.images import Rejection, RejectReason, decode
from tests.images.encoded import encode, netpbm_file, pfm_file, picture

PIXELS = np.asarray(picture(70, 50))


def reason(content: bytes) -> RejectReason:
    with pytest.raises(Rejection) as caught:
        decode(content)
    return caught.value.reason


@pytest.mark.parametrize("kind", ["P3", "P6", "P7"])
@pytest.mark.parametrize("maxval", [255, 100, 1023, 65535])
def test_samples_are_scaled_by_their_range(kind: str, maxval: int) -> None:
    values = np.rint(PIXELS * (maxval / 255)).astype(int)
    image = np.asarray(decode(netpbm_file(kind, values, maxval)))
    assert np.abs(image.astype(int) - PIXELS).max() <= (1 if maxval < 255 else 0) + (maxval == 100)


@pytest.mark.parametrize("kind", ["P2", "P5"])
def test_grey_is_read(kind: str) -> None:
    image = np.asarray(decode(netpbm_file(kind, PIXELS[..., 1])))
    assert np.array_equal(image[..., 0], PIXELS[..., 1])


@pytest.mark.parametrize("text", ["1 0 " * 20, "10" * 20])
def test_a_plain_bitmap_needs_no_spaces(text: str) -> None:
    content = b"P1\n40 40\n" + f"{text}# a row\n".encode() * 40
    image = decode(content)
    assert image.getpixel((0, 0)) == (0, 0, 0)
    assert image.getpixel((1, 0)) == (255, 255, 255)


def test_packed_bitmap_rows_are_padded_to_bytes() -> None:
    bits = np.random.default_rng(2).integers(0, 2, (33, 37)).astype(bool)
    image = decode(encode_bits(bits))
    assert np.array_equal(np.asarray(image)[..., 0], np.where(bits, 255, 0))


def encode_bits(bits: np.ndarray) -> bytes:  # type: ignore[type-arg]
    from PIL import Image

    return encode(Image.fromarray(bits), "PPM")


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("channels", [1, 3])
def test_float_maps_are_upright(channels: int, order: str) -> None:
    values = (PIXELS[..., :channels] / np.float32(255)).squeeze()
    image = np.asarray(decode(pfm_file(values, order=order)))
    assert np.array_equal(image[..., :channels].squeeze(), (values * 255).round())


def test_pam_alpha_is_composited_on_white() -> None:
    values = np.full((40, 40, 4), (200, 100, 0, 128))
    assert decode(netpbm_file("P7", values)).getpixel((5, 5)) == pytest.approx(
        (227, 177, 127), abs=1
    )


@pytest.mark.parametrize(
    "content",
    [
        b"P6 40 40 0 " + bytes(5000),
        b"P6 40 40 65536 " + bytes(5000),
        b"P6 40 x 255 " + bytes(5000),
        b"P5 40 40 100 " + b"\xff" * 1600,
        b"P2 40 40 100 " + b"101 " * 1600,
        b"P2 40 40 100 " + b"x " * 1600,
        b"P1 40 40 " + b"2 " * 1600,
        b"Pf 40 40 0 " + bytes(6400),
        b"Pf 40 40 nan " + bytes(6400),
        b"P7\nWIDTH 40\nHEIGHT 40\nDEPTH 1\nENDHDR\n" + bytes(1600),
        b"P7\nWIDTH 40\n?\n" + bytes(1600),
    ],
)
def test_damage_is_undecodable(content: bytes) -> None:
    assert reason(content) in (RejectReason.UNDECODABLE, RejectReason.UNSUPPORTED_FORMAT)


@pytest.mark.parametrize("kind", ["P2", "P3", "P5", "P6"])
def test_missing_samples_are_truncated(kind: str) -> None:
    assert reason(f"{kind} 7000 7000 255 1 2 3".encode()) is RejectReason.TRUNCATED


def test_five_channels_are_refused() -> None:
    content = netpbm_file("P7", np.zeros((40, 40, 5), int))
    assert reason(content) is RejectReason.UNSUPPORTED_FORMAT
