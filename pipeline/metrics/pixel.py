"""Pixel distances of float images in [-1, 1], one number an image.

They are taken on the reconstruction as the generator gives it, clamped to [-1, 1]. The published
scripts measure after writing 8-bit files, truncated instead of rounded: that shifts every pixel by
half a level, about 0.004, and hides differences below it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# The distance between black and white in [-1, 1]; PSNR's peak value.
PEAK = 2.0
# Networks see images of at least this size: the resolution of the published LPIPS scores, of whose
# AlexNet the first layer (11 px wide, stride 4) sees little of a smaller image.
NETWORK_SIDE = 256


def mean_squared_error(a: Tensor, b: Tensor) -> Tensor:
    """Mean over channels and pixels of (a - b)², [n]; `a`, `b` [n, c, h, w] in [-1, 1]."""
    return (a - b).square().mean(dim=(1, 2, 3))


def peak_signal_to_noise(error: Tensor) -> Tensor:
    """PSNR in decibel of mean squared errors in [-1, 1] (any shape); infinite where they are 0."""
    return 20.0 * math.log10(PEAK) - 10.0 * torch.log10(error)


def enlarged(images: Tensor, side: int = NETWORK_SIDE) -> Tensor:
    """Images [n, 3, h, w] whose longer side is at least `side`: bilinear where it is less."""
    height, width = images.shape[-2:]
    longer = max(height, width)
    if longer >= side:
        return images
    size = [round(height * side / longer), round(width * side / longer)]
    return F.interpolate(images, size, mode="bilinear", align_corners=False)
