from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFilter

from pipeline.alignment.quality import roll_deg, sharpness, yaw
from tests.images.encoded import picture


def landmarks(**places: tuple[float, float]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    names = {"jaw_left": 0, "jaw_right": 16, "nose": 30, "eye_left": 36, "eye_right": 45}
    points = np.zeros((68, 2), np.float32)
    for name, place in places.items():
        points[names[name]] = place
    return points


@pytest.mark.parametrize(
    ("right", "degrees"), [((10, 0), 0), ((10, 10), 45), ((10, -10), -45), ((0, 5), 90)]
)
def test_roll_is_positive_clockwise(right: tuple[float, float], degrees: float) -> None:
    assert roll_deg(landmarks(eye_left=(0, 0), eye_right=right)) == pytest.approx(degrees)


@pytest.mark.parametrize(
    ("nose", "expected"),
    [((50, 40), 0), ((75, 40), 0.5), ((0, 40), -1), ((130, 40), 1), ((-9, 40), -1)],
)
def test_yaw_is_the_nose_between_the_jaw_ends(nose: tuple[float, float], expected: float) -> None:
    points = landmarks(jaw_left=(0, 0), jaw_right=(100, 0), nose=nose)
    assert yaw(points) == pytest.approx(expected)


def test_yaw_is_independent_of_tilt() -> None:
    points = landmarks(jaw_left=(0, 0), jaw_right=(100, 0), nose=(70, 40))
    tilted = points @ np.array([[0.8, 0.6], [-0.6, 0.8]], np.float32)
    assert yaw(tilted) == pytest.approx(yaw(points), abs=1e-6)


def test_yaw_of_a_jaw_without_width_is_zero() -> None:
    assert yaw(landmarks(nose=(3, 3))) == 0


def test_sharpness_falls_with_blur() -> None:
    crop = picture(256, 256)
    values = [sharpness(crop.filter(ImageFilter.GaussianBlur(radius))) for radius in (0, 1, 3)]
    assert values[0] > 4 * values[1] > 16 * values[2] > 0


def test_sharpness_of_a_plain_crop_is_zero() -> None:
    assert sharpness(Image.new("RGB", (256, 256), (9, 80, 7))) == 0
    assert sharpness(Image.new("RGB", (2, 2))) == 0


def test_sharpness_is_the_variance_of_the_laplacian() -> None:
    grey = np.zeros((5, 5), np.uint8)
    grey[2, 2] = 100  # the inner 3×3 holds -400 once, 100 four times, 0 four times
    expected = (400**2 + 4 * 100**2) / 9
    assert sharpness(Image.fromarray(grey)) == pytest.approx(expected)


def test_sharpness_compares_between_output_sizes() -> None:
    crop = picture(64, 64).resize((256, 256), Image.Resampling.BICUBIC)
    large = crop.resize((1024, 1024), Image.Resampling.BICUBIC)
    assert sharpness(large) == pytest.approx(sharpness(crop), rel=0.5)
