from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.models.pixels import from_levels, to_levels, to_pixels, to_unit

LEVELS = torch.arange(256, dtype=torch.uint8)


def test_levels_equal_other_formulas_bit_for_bit() -> None:
    published = LEVELS.float().div(255).sub(0.5).div(0.5)  # ToTensor and Normalize(0.5, 0.5)
    assert torch.equal(from_levels(LEVELS), published)
    assert torch.equal(from_levels(LEVELS), LEVELS.float() / 127.5 - 1)
    assert from_levels(LEVELS[[0, 255]]).tolist() == [-1.0, 1.0]


def test_every_level_round_trips() -> None:
    assert torch.equal(to_levels(from_levels(LEVELS)), LEVELS)


def test_values_are_rounded_and_clamped() -> None:
    values = torch.tensor([-3.0, 200.4 / 127.5 - 1, 200.6 / 127.5 - 1, 0.0, 3.0])
    assert to_levels(values).tolist() == [0, 200, 201, 128, 255]
    late = ((values + 1) * 127.5).round().clamp(0, 255).byte()
    assert torch.equal(to_levels(values), late)


@pytest.mark.parametrize("shape", [(4, 5, 3), (2, 4, 5, 3), (1, 2, 4, 5, 3)])
def test_channel_order_round_trips(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    images = to_unit(pixels)
    assert images.shape == (*shape[:-3], 3, 4, 5)
    assert images.dtype == torch.float32
    assert (
        images[..., 1, 2, 3].ravel()[0] == pixels[..., 2, 3, 1].ravel()[0] / np.float32(127.5) - 1
    )
    back = to_pixels(images)
    np.testing.assert_array_equal(back, pixels)
    assert back.flags.c_contiguous


def test_batches_are_channels_last_in_memory() -> None:
    assert to_unit(np.zeros((2, 4, 5, 3), np.uint8)).is_contiguous(
        memory_format=torch.channels_last
    )


def test_read_only_images_are_copied() -> None:
    sink = io.BytesIO()
    Image.new("RGB", (5, 4), (255, 0, 0)).save(sink, "PNG")
    pixels = np.asarray(Image.open(sink))
    assert not pixels.flags.writeable
    to_unit(pixels).zero_()
    assert pixels[0, 0].tolist() == [255, 0, 0]
