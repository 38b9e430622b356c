from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.alignment.mirroring import Axis, Box, mirrored_window, reduced


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def mirrored(image: Image.Image, box: Box, pads: Box) -> NDArray[np.uint8]:
    left, top, right, bottom = pads
    edges = ((top, bottom), (left, right), (0, 0))
    return np.pad(np.asarray(image.crop(box)), edges, mode="reflect")


def axes_of(box: Box, pads: Box, window: Box) -> tuple[Axis, Axis]:
    return (
        Axis(box[2] - box[0], pads[0], pads[2], window[0], window[2]),
        Axis(box[3] - box[1], pads[1], pads[3], window[1], window[3]),
    )


# From a step of 17 on, sums do not fit into 16 bits.
@pytest.mark.parametrize("step", [1, 2, 3, 7, 16, 17, 40])
@pytest.mark.parametrize("pads", [(1, 1, 1, 1), (30, 7, 19, 90), (200, 1, 3, 55)])
@pytest.mark.parametrize("box", [(0, 0, 47, 33), (5, 4, 43, 31), (9, 9, 10, 12)])
def test_reduced_equals_pillows_reduce(box: Box, pads: Box, step: int) -> None:
    image = noise(47, 33)
    whole = mirrored(image, box, pads)
    means, firsts = reduced(image, box, axes_of(box, pads, (0, 0, 1, 1)), step)
    assert means.tobytes() == Image.fromarray(whole).reduce(step).tobytes()
    assert firsts.tobytes() == whole[::step, ::step].tobytes()


@pytest.mark.parametrize(
    "window", [(0, 0, 87, 124), (3, 2, 50, 40), (31, 8, 60, 20), (80, 9, 85, 99)]
)
def test_a_window_equals_the_mirrored_image(window: Box) -> None:
    image, box, pads = noise(47, 33), (5, 4, 43, 31), (30, 7, 19, 90)
    expected = mirrored(image, box, pads)[window[1] : window[3], window[0] : window[2]]
    result = mirrored_window(image, box, axes_of(box, pads, window))
    assert np.asarray(result).tobytes() == expected.tobytes()


def test_images_in_several_memory_blocks_are_reduced() -> None:
    image, box, pads = noise(4200, 1000), (4000, 100, 4190, 260), (57, 57, 57, 57)
    axes = axes_of(box, pads, (0, 0, 1, 1))
    small = reduced(image.crop(box), (0, 0, 190, 160), axes, 3)
    for result, expected in zip(reduced(image, box, axes, 3), small, strict=True):
        assert result.tobytes() == expected.tobytes()
