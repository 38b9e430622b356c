"""Pixel distances of float images in [-1, 1], one number per image.

They are measured on the generator's float output, clamped to [-1, 1]. The published scripts measure
8-bit files, truncated instead of rounded: this shifts pixels by half a level on average, about
0.004, and hides smaller differences.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# Distance between black and white in [-1, 1]: the peak value of PSNR.
PEAK = 2.0
# Smallest longer side of images for networks: the resolution of the published LPIPS scores. The
# first layer of AlexNet (11 px wide, stride 4) sees little of a smaller image.
NETWORK_SIDE = 256


def mean_squared_error(a: Tensor, b: Tensor) -> Tensor:
    """Return the mean of (a - b)² over channels and pixels, [n]; `a`, `b` [n, c, h, w]."""
    return (a - b).square().mean(dim=(1, 2, 3))


def peak_signal_to_noise(error: Tensor) -> Tensor:
    """Return the PSNR in decibel of mean squared errors of any shape; infinite for 0."""
    return 20.0 * math.log10(PEAK) - 10.0 * torch.log10(error)


def enlarge(images: Tensor) -> Tensor:
    """Return images [n, 3, h, w] with a longer side of 256 px or more; enlarges bilinearly."""
    height, width = images.shape[-2:]
    longer = max(height, width)
    if longer >= NETWORK_SIDE:
        return images
    size = [round(length * NETWORK_SIDE / longer) for length in (height, width)]
    return F.interpolate(images, size, mode="bilinear", align_corners=False)
