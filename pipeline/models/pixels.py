"""Between pictures of 8 bits, height by width by channel, and what networks take and give."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def from_levels(levels: Tensor) -> Tensor:
    """Levels 0..255, uint8 of any shape, as float32 in [-1, 1]."""
    return levels.float().div(127.5).sub(1)


def to_levels(values: Tensor) -> Tensor:
    """Values in [-1, 1], of any shape, as uint8: rounded, and clamped where they lie outside."""
    return values.clamp(-1, 1).add(1).mul(127.5).round().byte()


def to_truncated_levels(values: Tensor) -> Tensor:
    """Values in [-1, 1] as uint8 by the published scripts' `tensor2im`: cut down, not rounded.

    Each step is one of theirs in float32, so that equal values give equal levels. On average an
    image is half a level darker than by `to_levels`.
    """
    return values.float().add(1).div(2).clamp(0, 1).mul(255).byte()


def to_unit(pixels: NDArray[np.uint8]) -> Tensor:
    """Pictures uint8 [..., h, w, 3] as float32 [..., 3, h, w] in [-1, 1].

    The order in memory stays that of `pixels`: convolutions take it for `channels_last`.
    """
    # torch warns of memory that it may not write to, such as that of an image of Pillow's.
    writable = np.require(pixels, np.uint8, "W")
    return from_levels(torch.from_numpy(writable).movedim(-1, -3))


def to_pixels(images: Tensor, *, truncate: bool = False) -> NDArray[np.uint8]:
    """Images [..., 3, h, w] in [-1, 1], on any device, as uint8 [..., h, w, 3].

    As `to_levels` makes them, or to `truncate` as `to_truncated_levels` does.
    """
    levels = to_truncated_levels(images) if truncate else to_levels(images)
    pixels: NDArray[np.uint8] = levels.movedim(-3, -1).contiguous().cpu().numpy()
    return pixels
