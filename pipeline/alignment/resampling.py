"""A part of what Pillow's bilinear resize gives, to the byte.

Pillow rounds the box that it resizes to 32-bit floats, so that resizing a part by its own box gives
pixels that differ. Here the weights are of the whole axis. Pillow too resizes an axis at a time,
rows after columns, and rounds to 8 bits between them.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_BITS = 22  # of a weight, behind the point
_TAPS = 3  # of enlarging
_CHUNK = 1 << 15  # values of an output that are summed at once: they stay in the cache

_Box: TypeAlias = tuple[float, float, float, float]  # left, top, right, bottom


def resized_part(
    image: Image.Image,  # RGB
    box: _Box,  # what is resized
    size: tuple[int, int],  # of the whole result; no less than that of the box
    part: tuple[slice, slice],  # columns and rows of the result
) -> Image.Image:
    """Return a part of `image.resize(size, BILINEAR, box=box)`."""
    columns, rows = part
    if 2 * (rows.stop - rows.start) > size[1]:
        return _tall_part(image, box, size, columns, rows)
    return _wide_part(image, box, size, columns, rows)


def _tall_part(
    image: Image.Image, box: _Box, size: tuple[int, int], columns: slice, rows: slice
) -> Image.Image:
    first, weights = _weights(image.width, (box[0], box[2]), size[0], columns)
    low, high = _span(first, image.width)
    values = np.asarray(image.crop((low, 0, high, image.height)))
    # Columns come first: the rows of a strip are short.
    turned = np.ascontiguousarray(values.swapaxes(0, 1))
    widened = Image.fromarray(_summed(turned, first - low, weights).swapaxes(0, 1))
    width = columns.stop - columns.start
    whole = (0, box[1], width, box[3])
    resized = widened.resize((width, size[1]), Image.Resampling.BILINEAR, box=whole)
    return resized.crop((0, rows.start, width, rows.stop))


def _wide_part(
    image: Image.Image, box: _Box, size: tuple[int, int], columns: slice, rows: slice
) -> Image.Image:
    first, weights = _weights(image.height, (box[1], box[3]), size[1], rows)
    low, high = _span(first, image.height)
    # Only the rows that are read are widened.
    widened = image.crop((0, low, image.width, high)).resize(
        (size[0], high - low), Image.Resampling.BILINEAR, box=(box[0], 0, box[2], high - low)
    )
    values = np.asarray(widened.crop((columns.start, 0, columns.stop, high - low)))
    return Image.fromarray(_summed(values, first - low, weights))


def _weights(
    length: int, box: tuple[float, float], count: int, wanted: slice
) -> tuple[NDArray[np.intp], NDArray[np.int32]]:
    """Return, for each wanted place, the first place it is made of, and the weights of three."""
    begin, end = (np.float32(edge) for edge in box)
    place = np.arange(wanted.start, wanted.stop)
    centre = float(begin) + (place + 0.5) * (float(end - begin) / count)
    first = np.maximum(np.trunc(centre - 0.5), 0).astype(np.intp)
    last = np.minimum(np.trunc(centre + 1.5), length).astype(np.intp)
    taps = first[:, None] + np.arange(_TAPS)
    share = np.maximum(1 - np.abs(taps - centre[:, None] + 0.5), 0) * (taps < last[:, None])
    share /= (share[:, 0] + share[:, 1] + share[:, 2])[:, None]
    return first, (0.5 + share * (1 << _BITS)).astype(np.int32)


def _span(first: NDArray[np.intp], length: int) -> tuple[int, int]:
    """Return the begin and the end of all that is read."""
    return int(first.min()), min(int(first.max()) + _TAPS, length)


def _summed(
    values: NDArray[np.uint8],  # [length, ...]
    first: NDArray[np.intp],  # [n]
    weights: NDArray[np.int32],  # [n, taps]
) -> NDArray[np.uint8]:
    """Return the weighted sums [n, ...] of `values`, rounded."""
    result = np.empty((len(first), *values.shape[1:]), np.uint8)
    shape = (-1,) + (1,) * (values.ndim - 1)
    rows = max(_CHUNK // max(values[0].size, 1), 1)
    for begin in range(0, len(first), rows):
        part: Any = slice(begin, begin + rows)
        total = np.full(result[part].shape, 1 << (_BITS - 1), np.int32)
        for tap in range(_TAPS):
            weight = weights[part, tap]
            if weight.any():
                place = np.minimum(first[part] + tap, len(values) - 1)
                total += values[place] * weight.reshape(shape)
        total >>= _BITS
        result[part] = total  # weights sum to 1: nothing leaves [0, 255]
    return result
