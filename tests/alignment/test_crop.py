from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.alignment import crop_quad, ffhq_quad, pad_fraction
from pipeline.images import Rejection, RejectReason
from tests.images.encoded import picture


def square(left: float, top: float, side: float) -> NDArray[np.float64]:
    right, bottom = left + side, top + side
    return np.array([(left, top), (left, bottom), (right, bottom), (right, top)], float)


def smooth(width: int, height: int) -> Image.Image:
    return picture(40, 40).resize((width, height), Image.Resampling.BICUBIC)


def difference(image: Image.Image, other: Image.Image) -> float:
    return float(np.abs(np.asarray(image, float) - np.asarray(other, float)).mean())


def test_a_level_square_is_cropped_unchanged() -> None:
    image = smooth(600, 500)
    # The quad's corners are pixel centres plus a half, so a square of 256 reads pixel for pixel.
    crop = crop_quad(image, square(150, 120, 256) - 0.5, 256)
    assert difference(crop, image.crop((150, 120, 406, 376))) < 0.6


def test_a_rotated_square_is_cropped_upright() -> None:
    image = smooth(500, 500)
    quarter = np.roll(square(120, 120, 256), 1, axis=0)
    upright = crop_quad(image, square(120, 120, 256), 256)
    turned = crop_quad(image, quarter, 256)
    assert difference(turned, upright.transpose(Image.Transpose.ROTATE_90)) < 2
    assert difference(turned, upright) > 10


@pytest.mark.parametrize("size", [(1600, 1600), (1601, 1499)])
def test_a_shrunk_window_equals_the_shrunk_image(size: tuple[int, int]) -> None:
    image = smooth(*size)
    quad = square(220, 180, 1100)
    small = image.resize((round(size[0] / 2), round(size[1] / 2)), Image.Resampling.LANCZOS)
    assert difference(crop_quad(image, quad), crop_quad(small, quad / 2)) < 0.1


def test_the_crop_has_the_given_size() -> None:
    image = smooth(600, 600)
    large = crop_quad(image, square(100, 100, 400), 512)
    assert large.size == (512, 512)
    small = crop_quad(image, square(100, 100, 400), 256)
    assert difference(large.resize((256, 256), Image.Resampling.BOX), small) < 1.5


def exact_padding(image: Image.Image, pads: tuple[int, int, int, int], side: float) -> Image.Image:
    """Pad like FFHQ in floats: mirror, exact Gaussian, fade to the median. A slow reference."""
    left, top, right, bottom = pads
    v = np.pad(np.asarray(image, float), ((top, bottom), (left, right), (0, 0)), mode="reflect")
    height, width, _ = v.shape
    y, x = np.ogrid[:height, :width]
    depth = np.maximum(
        1 - np.minimum(x / left, (width - 1 - x) / right),
        1 - np.minimum(y / top, (height - 1 - y) / bottom),
    )[..., None]
    sigma = side * 0.02
    radius = int(4 * sigma + 0.5)
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    blurred = v
    for axis in (0, 1):
        edges = [(radius, radius) if a == axis else (0, 0) for a in range(3)]
        wide = np.pad(blurred, edges, mode="symmetric")
        windows = np.lib.stride_tricks.sliding_window_view(wide, len(kernel), axis)
        blurred = windows @ (kernel / kernel.sum())
    v = v + (blurred - v) * np.clip(depth * 3 + 1, 0, 1)
    v = v + (np.median(v, axis=(0, 1)) - v) * np.clip(depth, 0, 1)
    return Image.fromarray(np.clip(np.rint(v), 0, 255).astype(np.uint8))


def test_padding_follows_the_float_reference() -> None:
    image = picture(150, 150)
    side, pad = 170.0, 51  # 0.3 of the side, on every edge
    padded = exact_padding(image, (pad, pad, pad, pad), side)
    quad = square(-10, -10, side)
    expected = crop_quad(padded, quad + pad)
    assert difference(crop_quad(image, quad), expected) < 1


def test_padding_of_a_plain_image_is_plain() -> None:
    image = Image.new("RGB", (300, 300), (200, 180, 160))
    crop = np.asarray(crop_quad(image, square(-120, -90, 300)))
    assert np.abs(crop.astype(int) - (200, 180, 160)).max() <= 1


def test_a_square_outside_the_image_is_rejected() -> None:
    with pytest.raises(Rejection):
        crop_quad(smooth(300, 300), square(900, 900, 100))


@pytest.mark.parametrize(
    ("left", "top", "fraction"), [(50, 50, 0), (-50, 50, 0.5), (-50, -50, 0.75), (250, 50, 0.5)]
)
def test_pad_fraction_is_the_fraction_outside(left: float, top: float, fraction: float) -> None:
    assert pad_fraction(square(left, top, 100), 300, 300) == pytest.approx(fraction)


def face_points() -> NDArray[np.float64]:
    """Return landmarks: eyes at (90, 100) and (110, 100), mouth at (92, 130) and (108, 130)."""
    points = np.full((68, 2), 100.0)
    points[36:42], points[42:48] = (90, 100), (110, 100)
    points[48], points[54] = (92, 130), (108, 130)
    return points


def rotated(points: NDArray[np.float64], degrees: float) -> NDArray[np.float64]:
    angle = np.radians(degrees)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return np.asarray(points @ turn)


def test_a_level_face_gives_a_level_square() -> None:
    # Half side 1.8 × 30 (eyes to mouth outweighs 2.0 × 20); centre 3 below the eyes.
    expected = [(46, 49), (46, 157), (154, 157), (154, 49)]
    assert ffhq_quad(face_points()) == pytest.approx(np.array(expected))


def test_wide_eyes_set_the_size_of_the_square() -> None:
    points = face_points()
    points[36:42], points[42:48] = (60, 100), (140, 100)
    quad = ffhq_quad(points)
    assert np.hypot(*(quad[3] - quad[0])) == pytest.approx(2 * 2.0 * 80)


@pytest.mark.parametrize("degrees", [-150.0, -20.0, 35.0, 90.0])
def test_the_square_rotates_and_scales_with_the_face(degrees: float) -> None:
    points = face_points()
    assert ffhq_quad(rotated(points, degrees) * 3.5) == pytest.approx(
        rotated(ffhq_quad(points), degrees) * 3.5
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_landmarks_are_rejected(bad: float) -> None:
    points = face_points()
    points[40, 1] = bad
    with pytest.raises(Rejection) as caught:
        ffhq_quad(points)
    assert caught.value.reason is RejectReason.NOT_FINITE


def test_landmarks_in_one_point_are_rejected() -> None:
    with pytest.raises(Rejection) as caught:
        ffhq_quad(np.full((68, 2), 7.0))
    assert caught.value.reason is RejectReason.NOT_FINITE
