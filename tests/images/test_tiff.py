from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.images import ICC_IGNORED, ImageLimits, Rejection, RejectReason, decode
from tests.images.encoded import picture, tiff_file
from tests.images.icc_profiles import DISPLAY_P3, rgb_profile

PIXELS = np.asarray(picture(70, 50))


def samples(kind: str) -> NDArray[Any]:
    """Return the picture in the range of type `kind`: [0, 1] of floats, 16 bits, or [0, 255]."""
    if kind.startswith("f"):
        return (PIXELS / 255).astype(kind)
    return PIXELS.astype(kind) * 257 if kind == "u2" else PIXELS.astype(kind)


def error(content: bytes) -> int:
    return int(np.abs(np.asarray(decode(content)).astype(int) - PIXELS).max())


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", [1, 5, 8])
@pytest.mark.parametrize("kind", ["f2", "f4", "f8"])
def test_floats_in_three_channels_are_read(kind: str, compression: int, order: str) -> None:
    assert error(tiff_file(samples(kind), compression=compression, order=order)) == 0


@pytest.mark.parametrize("layout", [{}, {"tile": (32, 16)}, {"planar": True}, {"rows": 1}])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("kind", "predictor"), [("f2", 3), ("f4", 3), ("f8", 3), ("f4", 2), ("u4", 2), ("i2", 2)]
)
def test_predictors_are_undone(
    kind: str, predictor: int, order: str, layout: dict[str, Any]
) -> None:
    content = tiff_file(samples(kind), compression=8, predictor=predictor, order=order, **layout)
    assert error(content) == 0


@pytest.mark.parametrize("compression", [1, 8])
@pytest.mark.parametrize(
    "layout", [{"tile": (32, 16)}, {"planar": True}, {"tile": (16, 32), "planar": True}]
)
def test_tiles_and_planes_are_joined(layout: dict[str, Any], compression: int) -> None:
    assert error(tiff_file(samples("f4"), compression=compression, **layout)) == 0


EXTRAS = [(1, ()), (2, (0,)), (2, (1,)), (2, (2,)), (3, ()), (4, (0,)), (4, (2,)), (5, (0, 0))]


@pytest.mark.parametrize("layout", [{}, {"tile": (32, 16)}, {"planar": True}])
@pytest.mark.parametrize("compression", [1, 8])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", ["u1", "u2", "u4", "i2", "f4"])
def test_every_layout_gives_the_same_picture(
    kind: str, order: str, compression: int, layout: dict[str, Any]
) -> None:
    # Pillow refuses some of these and misreads others: planes of 16 bits, planes of grey with
    # alpha, 16 bits with white as zero, compressed floats of the other byte order.
    for (count, extra), photometric in itertools.product(EXTRAS, (0, 1, 2)):
        colours = 3 if photometric == 2 else 1
        if count - len(extra) != colours:
            continue
        values = np.concatenate([PIXELS, PIXELS], axis=2)[..., :count]
        values[..., colours:] = 255  # opaque
        values[0, 0] = 255  # the top of the range
        scaled = values / 255 if kind == "f4" else values * (257.0 if kind == "u2" else 1.0)
        content = tiff_file(
            scaled.astype(kind),
            compression=compression,
            order=order,
            photometric=photometric,
            extra=extra,
            **layout,
        )
        stored = values[..., :colours].astype(int)
        expected = np.broadcast_to(255 - stored if photometric == 0 else stored, PIXELS.shape)
        # Pillow keeps the upper bytes of 16-bit RGB.
        assert np.abs(np.asarray(decode(content)) - expected).max() <= (kind == "u2"), (
            count,
            extra,
        )


def test_bands_of_a_large_image_join() -> None:
    rng = np.random.default_rng(5)
    values = rng.integers(0, 256, (1500, 1100, 3)).astype(np.uint8)  # 19 MiB of floats
    content = tiff_file(values / np.float32(255), compression=8, rows=64)
    assert np.array_equal(decode(content), values)


@pytest.mark.parametrize(("extra", "alpha"), [(2, 0.5), (1, 1.0), (0, 0.0)])
def test_float_alpha_is_composited_on_white(extra: int, alpha: float) -> None:
    values = np.full((40, 40, 4), 0.5, np.float32)
    values[0, 0] = 1.0  # so that the range is [0, 1]
    level = decode(tiff_file(values, extra=(extra,))).getpixel((20, 20))
    # Without alpha: 128; half of it and half white; itself and white (premultiplied).
    expected = {0.0: 128, 0.5: 191, 1.0: 255}[alpha]
    assert level == pytest.approx((expected,) * 3, abs=2)


def test_white_is_zero_is_inverted() -> None:
    values = np.full((40, 40, 2), 0.25, np.float32)
    values[0, 0] = 1.0
    image = decode(tiff_file(values, photometric=0, extra=(0,)))
    assert image.getpixel((20, 20)) == pytest.approx((191,) * 3, abs=1)


def test_orientation_and_profile_are_applied() -> None:
    content = tiff_file(samples("f4"), tags={274: (6,)}, profile=rgb_profile(DISPLAY_P3))
    image = decode(content)
    assert image.size == (50, 70)
    assert ICC_IGNORED not in image.info
    plain = decode(content, ImageLimits(icc="ignore"))
    assert np.array_equal(plain, np.rot90(PIXELS, -1))
    assert np.abs(np.asarray(image).astype(int) - plain).max() > 10


def rejection(content: bytes, limits: ImageLimits | None = None) -> Rejection:
    with pytest.raises(Rejection) as caught:
        decode(content, limits)
    return caught.value


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_samples_are_rejected(bad: float) -> None:
    values = samples("f4").copy()
    values[3, 4, 1] = bad
    assert rejection(tiff_file(values)).reason is RejectReason.NOT_FINITE


def test_size_is_checked_before_reading() -> None:
    content = tiff_file(samples("f4"), tags={256: (60_000,), 257: (60_000,)})
    assert rejection(content).reason is RejectReason.TOO_LARGE


def test_a_strip_of_gigabytes_is_refused() -> None:
    content = tiff_file(samples("f8"), compression=8, rows=8000, tags={256: (8000,), 257: (7900,)})
    refusal = rejection(content)
    assert refusal.reason is RejectReason.TOO_LARGE
    assert "fewer rows a strip" in refusal.detail


@pytest.mark.parametrize("compression", [1, 5, 8])
def test_missing_strips_are_not_damage(compression: int) -> None:
    content = tiff_file(samples("f4"), compression=compression)
    short = tiff_file(samples("f4"), compression=compression, tags={257: (500,)})
    assert rejection(content[: len(content) // 2]).reason is RejectReason.TRUNCATED
    assert "strips or tiles are missing" in rejection(short).detail


def test_an_unsupported_layout_is_named() -> None:
    content = tiff_file(samples("f4"), tags={262: (32845,)})  # LogLuv
    refusal = rejection(content)
    assert refusal.reason is RejectReason.UNDECODABLE
    assert "photometric 32845" in refusal.detail
    assert "convert it to 8 or 16 bit RGB" in refusal.detail


@pytest.mark.parametrize("tags", [{254: (1,), 330: (8,)}, {254: (1,), 50706: (1,)}])
def test_camera_raw_previews_are_refused(tags: dict[int, tuple[int, ...]]) -> None:
    refusal = rejection(tiff_file(PIXELS, tags=tags))
    assert refusal.reason is RejectReason.UNSUPPORTED_FORMAT
    assert "camera raw" in refusal.detail


def test_a_developed_dng_is_read() -> None:
    for tags in ({50706: (1,)}, {330: (8,)}, {254: (0,)}):
        assert np.array_equal(decode(tiff_file(PIXELS, tags=tags)), Image.fromarray(PIXELS))
