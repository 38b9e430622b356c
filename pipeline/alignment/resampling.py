"""Some rows of what Pillow's bilinear resize gives, to the byte.

Pillow rounds the box that it resizes to 32-bit floats, so that resizing a part by its own box gives
pixels that differ. Only the rows are resampled here: an axis at a time is how Pillow does it too.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_BITS = 22  # of a weight, behind the point


def resized_rows(
    image: Image.Image,  # RGB
    box: tuple[float, float],  # the first row and the end of what is resized
    height: int,  # of the whole result; no less than that of the box
    rows: slice,  # of the result
) -> Image.Image:
    """`image.resize((width, height), BILINEAR, box=(0, *box, width))`, of it the `rows`."""
    first, weights = _weights(image.height, box, height)
    first, weights = first[rows], weights[rows]
    values = np.asarray(image)
    total = np.full((len(first), *values.shape[1:]), 1 << (_BITS - 1), np.int32)
    for tap in range(weights.shape[1]):
        weight = weights[:, tap, None, None]
        if weight.any():
            total += values[np.minimum(first + tap, image.height - 1)] * weight
    total >>= _BITS
    return Image.fromarray(total.astype(np.uint8))  # weights sum to 1: nothing leaves [0, 255]


def _weights(
    length: int, box: tuple[float, float], height: int
) -> tuple[NDArray[np.intp], NDArray[np.int32]]:
    """Of each row of the result the first row that it is made of, and the weights of three."""
    begin, end = (np.float32(edge) for edge in box)
    centre = float(begin) + (np.arange(height) + 0.5) * (float(end - begin) / height)
    first = np.maximum(np.trunc(centre - 0.5), 0).astype(np.intp)
    last = np.minimum(np.trunc(centre + 1.5), length).astype(np.intp)
    taps = first[:, None] + np.arange(3)
    share = np.maximum(1 - np.abs(taps - centre[:, None] + 0.5), 0) * (taps < last[:, None])
    share /= (share[:, 0] + share[:, 1] + share[:, 2])[:, None]
    return first, (0.5 + share * (1 << _BITS)).astype(np.int32)
