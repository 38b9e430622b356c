"""Images as frequency bands: a Laplacian pyramid (Burt and Adelson, 1983) with a box filter."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

_COARSEST = 4  # side in pixels under which an image is not divided further


def laplacian_bands(images: Tensor) -> list[Tensor]:
    """Bands of images [n, c, h, w], fine to coarse; each an octave, [n, c, h / 2ᵏ, w / 2ᵏ].

    A band is what an image of that size loses when it is halved (means of 2×2) and enlarged again
    (bilinear); the last one is the image that is left.
    """
    bands = []
    while min(images.shape[-2:]) >= 2 * _COARSEST:
        half = F.avg_pool2d(images, 2)
        again = F.interpolate(half, images.shape[-2:], mode="bilinear", align_corners=False)
        bands.append(images - again)
        images = half
    return [*bands, images]


def band_names(side: int) -> list[str]:
    """Cycles an image side of the bands of an image whose shorter side has `side` pixels."""
    names = []
    while side >= 2 * _COARSEST:
        names.append(f"{side // 4}–{side // 2}")
        side //= 2
    return [*names, f"0–{side // 2}"]
