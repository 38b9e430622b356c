"""Simple implementation of `pipeline.alignment.padding`: it builds the whole padded image."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from pipeline.alignment.padding import BLUR


def plain_padded(
    image: Image.Image,  # RGB
    box: tuple[int, int, int, int],  # part of `image` that is padded
    pads: tuple[int, int, int, int],  # left, top, right, bottom
    side: float,
    window: tuple[int, int, int, int],  # left, top, right, bottom, of the padded image
) -> Image.Image:
    """Return `window` of the `box` of `image`, mirrored over its edges, blurred and faded."""
    region = image.crop(box)
    left, top, right, bottom = pads
    mirrored = np.pad(np.asarray(region), ((top, bottom), (left, right), (0, 0)), mode="reflect")
    height, width, _ = mirrored.shape
    # Depths: 0 at the image's edge, 1 at the padding's outer edge, below 0 inside.
    across, down = 1 - _distance(width, left, right), 1 - _distance(height, top, bottom)
    sigma = side * BLUR
    step = max(int(sigma / 2), 1)
    coarse = Image.fromarray(mirrored).reduce(step).filter(ImageFilter.GaussianBlur(sigma / step))
    sampled = Image.composite(
        coarse,
        Image.fromarray(mirrored[::step, ::step]),
        _mask(across[::step] * 3 + 1, down[::step] * 3 + 1),
    )
    median = tuple(round(float(v)) for v in np.median(np.asarray(sampled), axis=(0, 1)))

    x, y = slice(window[0], window[2]), slice(window[1], window[3])
    sharp = Image.fromarray(mirrored[y, x])
    box = (window[0] / step, window[1] / step, window[2] / step, window[3] / step)
    blurred = coarse.resize(sharp.size, Image.Resampling.BILINEAR, box=box)
    faded = Image.composite(blurred, sharp, _mask(across[x] * 3 + 1, down[y] * 3 + 1))
    plain = Image.new("RGB", sharp.size, median)
    return Image.composite(plain, faded, _mask(across[x], down[y]))


def _distance(length: int, before: int, after: int) -> NDArray[np.float64]:
    """Return distances from the nearer outer edge, in units of that side's padding, [length]."""
    place = np.arange(length)
    return np.minimum(place / before, (length - 1 - place) / after)


def _mask(across: NDArray[np.float64], down: NDArray[np.float64]) -> Image.Image:
    """Return an 8-bit mask: the larger of the column's and the row's share, clipped to [0, 1]."""
    columns, rows = (np.rint(np.clip(share, 0, 1) * 255) for share in (across, down))
    return Image.fromarray(np.maximum.outer(rows.astype(np.uint8), columns.astype(np.uint8)))
