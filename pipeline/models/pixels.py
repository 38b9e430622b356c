"""Conversion between 8-bit images and the values in [-1, 1] that networks use."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def from_levels(levels: Tensor) -> Tensor:
    """Return levels 0..255 (uint8, any shape) as float32 in [-1, 1]."""
    return levels.float().div(127.5).sub(1)


def to_levels(values: Tensor) -> Tensor:
    """Return values in [-1, 1] (any shape) as uint8: rounded, and clamped outside the range."""
    return values.clamp(-1, 1).add(1).mul(127.5).round().byte()


def to_truncated_levels(values: Tensor) -> Tensor:
    """Return values in [-1, 1] as uint8, truncated as by `tensor2im` of the published scripts.

    Computes the same float32 operations, so that equal values give equal levels. On average an
    image is half a level darker than with `to_levels`.
    """
    return values.float().add(1).div(2).clamp(0, 1).mul(255).byte()


def to_unit(pixels: NDArray[np.uint8]) -> Tensor:
    """Return images uint8 [..., h, w, 3] as float32 [..., 3, h, w] in [-1, 1].

    Keeps the memory order of `pixels`, which convolutions treat as `channels_last`.
    """
    # torch warns about read-only memory, such as that of a Pillow image.
    writable = np.require(pixels, np.uint8, "W")
    return from_levels(torch.from_numpy(writable).movedim(-1, -3))


def to_pixels(images: Tensor, *, truncate: bool = False) -> NDArray[np.uint8]:
    """Return images [..., 3, h, w] in [-1, 1], on any device, as uint8 [..., h, w, 3].

    Converted by `to_levels`, or with `truncate` by `to_truncated_levels`.
    """
    levels = to_truncated_levels(images) if truncate else to_levels(images)
    pixels: NDArray[np.uint8] = levels.movedim(-3, -1).contiguous().cpu().numpy()
    return pixels
