from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.alignment import crop_quad
from pipeline.alignment.crop import ffhq_quad
from pipeline.alignment.detection import find_faces, find_landmarks
from pipeline.alignment.padding import resized_part
from pipeline.images import Rejection, decode
from tests.alignment.plain_padding import plain_padded


def square(x: float, y: float, side: float, degrees: float = 0.0) -> NDArray[np.float64]:
    """Return a square around (x, y), turned clockwise."""
    angle = math.radians(degrees)
    right = np.array([math.cos(angle), math.sin(angle)]) * side / 2
    down = np.array([-right[1], right[0]])
    return np.array([x, y]) + np.stack([-right - down, down - right, right + down, right - down])


def noise(rng: np.random.Generator, width: int, height: int, grain: int) -> Image.Image:
    shape = (max(height // grain, 2), max(width // grain, 2), 3)
    image = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
    return image.resize((width, height), Image.Resampling.BICUBIC)


def cases(count: int) -> Iterator[tuple[Image.Image, NDArray[np.float64], int]]:
    """Yield images with squares over their edges: far, turned, and by a few pixels."""
    rng = np.random.default_rng(7)
    for number in range(count):
        width, height = (int(n) for n in rng.integers(16, 420, 2))
        image = noise(rng, width, height, int(rng.integers(1, 30)))
        side = float(np.exp(rng.uniform(np.log(8), np.log(2 * max(width, height)))))
        x, y = rng.uniform(-0.2, 1.2) * width, rng.uniform(-0.2, 1.2) * height
        if number % 3 == 0:  # up to 4 pixels over the left edge
            side = 0.9 * min(width, height)
            x, y = side / 2 - rng.uniform(-4, 4), height / 2
        degrees = float(rng.uniform(-180, 180)) if number % 2 else 0.0
        yield image, square(x, y, side, degrees), int(rng.choice([64, 256]))


def outcome(image: Image.Image, quad: NDArray[np.float64], size: int) -> bytes | str:
    try:
        return crop_quad(image, quad, size).tobytes()
    except Rejection as rejection:
        return str(rejection)


@pytest.fixture
def plain_crop(monkeypatch: pytest.MonkeyPatch) -> Callable[..., bytes | str]:
    """Crop with the simple implementation of the padding."""

    def crop(image: Image.Image, quad: NDArray[np.float64], size: int) -> bytes | str:
        with monkeypatch.context() as patch:
            patch.setattr("pipeline.alignment.crop.padded", plain_padded)
            return outcome(image, quad, size)

    return crop


def test_padded_crops_equal_the_simple_ones(plain_crop: Callable[..., bytes | str]) -> None:
    padded = 0
    for image, quad, size in cases(180):
        expected = plain_crop(image, quad, size)
        assert outcome(image, quad, size) == expected, (image.size, quad, size)
        padded += isinstance(expected, bytes)
    assert padded > 100


def test_padded_portraits_equal_the_simple_ones(
    sample_images: dict[str, bytes], plain_crop: Callable[..., bytes | str]
) -> None:
    image = decode(sample_images["portraits/0001.jpg"])
    (face,) = find_faces(image)
    quad = ffhq_quad(find_landmarks(np.asarray(image), face))
    low = quad.min(axis=0)
    for over in (-5, -1, 0.5, 1, 3, 20, 100):  # pixels over the left edge, then over the top
        for axis in (0, 1):
            moved = quad.copy()
            moved[:, axis] -= low[axis] + over
            assert outcome(image, moved, 256) == plain_crop(image, moved, 256), (over, axis)


def test_an_image_of_one_row_is_padded(plain_crop: Callable[..., bytes | str]) -> None:
    image = noise(np.random.default_rng(1), 40, 1, 1)
    for quad in (square(20, 0, 20), square(20, 0, 60, 30)):
        assert outcome(image, quad, 64) == plain_crop(image, quad, 64)


@pytest.mark.parametrize("height", [7, 30, 41])
@pytest.mark.parametrize("box", [(0.0, 7.0), (1 / 3, 6 + 2 / 3), (0.1, 5.7)])
def test_resized_parts_equal_pillows(height: int, box: tuple[float, float]) -> None:
    image = noise(np.random.default_rng(3), 11, 7, 1)
    edges, size = (0.2, box[0], 9.9, box[1]), (21, height)
    whole = image.resize(size, Image.Resampling.BILINEAR, box=edges)
    for rows in (slice(0, height), slice(1, height - 1), slice(2, 5), slice(height - 1, height)):
        for columns in (slice(0, 21), slice(2, 7)):
            part = resized_part(image, edges, size, (columns, rows))
            expected = whole.crop((columns.start, rows.start, columns.stop, rows.stop))
            assert part.tobytes() == expected.tobytes()
