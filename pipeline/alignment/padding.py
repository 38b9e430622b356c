"""Pad an image as FFHQ was padded: mirrored, blurred and faded to the median colour.

FFHQ's preparation works in floats on the whole image. This one works in 8 bits and blurs at a lower
resolution: a crop with a quarter of padding differs by 0.2 grey levels on average. The median is
that of the whole padded image, which is never built: its block means come from the image itself,
and only the faded strips are computed at full resolution. `tests/alignment/plain_padding.py` is the
simple implementation with equal bytes.

`resized_part` computes a part of what Pillow's bilinear resize gives, with equal bytes. Pillow
rounds its `box` to 32-bit floats, so that resizing a part with its own box gives other pixels; here
the weights are those of the whole axis. Like Pillow it resizes one axis after the other, and rounds
to 8 bits between them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from pipeline.alignment.mirroring import Axis, Box, mirrored_window, reduced

BLUR = 0.02  # sigma of the blur of mirrored content, as a fraction of the square's side
MARGIN = 3  # pixels of the window around the square's corners; a crop may read the first of them

_Floats = NDArray[np.float64]
_Levels = NDArray[np.uint8]


def padded(
    image: Image.Image,  # RGB
    box: Box,  # the part of `image` that is padded
    pads: tuple[int, int, int, int],  # left, top, right, bottom; each 1 or more
    side: float,  # of the square to crop
    window: Box,  # in pixels of the padded image
) -> Image.Image:
    """Return the part `window` of `box` of `image` with `pads` around it."""
    left, top, right, bottom = pads
    axes = (
        Axis(box[2] - box[0], left, right, window[0], window[2]),
        Axis(box[3] - box[1], top, bottom, window[1], window[3]),
    )
    sigma = side * BLUR
    step = max(int(sigma / 2), 1)
    coarse, sampled = reduced(image, box, axes, step)
    coarse = coarse.filter(ImageFilter.GaussianBlur(sigma / step))
    across, down = (_levels(_blur_share(axis.depth[::step])) for axis in axes)
    median = _median(Image.composite(coarse, sampled, _mask(across, down)))
    window_image = mirrored_window(image, box, axes)
    _fade(window_image, coarse, axes, step, median)
    return window_image


def _fade(
    window: Image.Image,
    coarse: Image.Image,  # the whole padded image, blurred, at 1 / `step` of its size
    axes: tuple[Axis, Axis],  # columns and rows
    step: int,
    median: tuple[int, int, int],
) -> None:
    """Fade `window` in place along its edges to the blurred image, and the result to the median.

    The outermost pixels, which no crop reads (`MARGIN`), stay as they are.
    """
    x, y = axes
    box = (x.start / step, y.start / step, x.stop / step, y.stop / step)
    depths = [axis.depth[axis.start : axis.stop] for axis in axes]
    across, down = (_levels(_blur_share(depth)) for depth in depths)
    for columns, rows in _strips(across, down):
        blurred = resized_part(coarse, box, window.size, (columns, rows))
        window.paste(blurred, _box(columns, rows), _mask(across[columns], down[rows]))
    across, down = map(_levels, depths)
    for columns, rows in _strips(across, down):
        window.paste(median, _box(columns, rows), _mask(across[columns], down[rows]))


def _strips(across: _Levels, down: _Levels) -> Iterator[tuple[slice, slice]]:
    """Yield columns and rows of the faded strips: left, right, then top and bottom between them."""
    (x0, left), (right, x1) = _faded_ends(across)
    (y0, top), (bottom, y1) = _faded_ends(down)
    strips = (
        (x0, left, y0, y1),
        (right, x1, y0, y1),
        (left, right, y0, top),
        (left, right, bottom, y1),
    )
    for begin, end, low, high in strips:
        if begin < end and low < high:
            yield slice(begin, end), slice(low, high)


def _faded_ends(levels: _Levels) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return begin and end of the faded pixels of an axis, before and after its clear pixels."""
    first, last = MARGIN, len(levels) - MARGIN + 1
    clear = np.flatnonzero(levels == 0)
    if not len(clear):
        return (first, last), (last, last)
    return (first, max(int(clear[0]), first)), (min(int(clear[-1]) + 1, last), last)


def _box(columns: slice, rows: slice) -> Box:
    return columns.start, rows.start, columns.stop, rows.stop


def _blur_share(depth: _Floats) -> _Floats:
    """Return the weight of the blurred image at a depth: 0 a third inside the edge, 1 at it."""
    return depth * 3 + 1


def _median(image: Image.Image) -> tuple[int, int, int]:
    """Return each channel's median, rounded; for an even number of pixels the mean of two."""
    counts = np.reshape(image.histogram(), (3, 256)).cumsum(axis=1)
    total = image.width * image.height
    ranks = ((total - 1) // 2 + 1, total // 2 + 1)
    low, high = ([int(np.searchsorted(c, rank)) for c in counts] for rank in ranks)
    red, green, blue = (round((a + b) / 2) for a, b in zip(low, high, strict=True))
    return red, green, blue


def _mask(across: _Levels, down: _Levels) -> Image.Image:
    """Return an 8-bit mask: the larger of the column's and the row's level at each pixel."""
    return Image.fromarray(np.maximum.outer(down, across))


def _levels(shares: _Floats) -> _Levels:
    levels: NDArray[Any] = np.rint(np.clip(shares, 0, 1) * 255)
    return levels.astype(np.uint8)


_BITS = 22  # fraction bits of a weight
_TAPS = 3  # source pixels of one enlarged pixel
_CHUNK = 1 << 15  # values summed at once: they fit in the cache

_FloatBox: TypeAlias = tuple[float, float, float, float]  # left, top, right, bottom


def resized_part(
    image: Image.Image,  # RGB
    box: _FloatBox,  # source area, in pixels of `image`
    size: tuple[int, int],  # of the whole result; at least that of the box
    part: tuple[slice, slice],  # columns and rows of the result
) -> Image.Image:
    """Return a part of `image.resize(size, BILINEAR, box=box)`."""
    columns, rows = part
    if 2 * (rows.stop - rows.start) > size[1]:
        return _tall_part(image, box, size, columns, rows)
    return _wide_part(image, box, size, columns, rows)


def _tall_part(
    image: Image.Image, box: _FloatBox, size: tuple[int, int], columns: slice, rows: slice
) -> Image.Image:
    first, weights = _weights(image.width, (box[0], box[2]), size[0], columns)
    low, high = _span(first, image.width)
    values = np.asarray(image.crop((low, 0, high, image.height)))
    # Columns first: a tall strip has short rows.
    turned = np.ascontiguousarray(values.swapaxes(0, 1))
    widened = Image.fromarray(_weighted_sums(turned, first - low, weights).swapaxes(0, 1))
    width = columns.stop - columns.start
    whole = (0, box[1], width, box[3])
    resized = widened.resize((width, size[1]), Image.Resampling.BILINEAR, box=whole)
    return resized.crop((0, rows.start, width, rows.stop))


def _wide_part(
    image: Image.Image, box: _FloatBox, size: tuple[int, int], columns: slice, rows: slice
) -> Image.Image:
    first, weights = _weights(image.height, (box[1], box[3]), size[1], rows)
    low, high = _span(first, image.height)
    # Widen only the rows that are read.
    widened = image.crop((0, low, image.width, high)).resize(
        (size[0], high - low), Image.Resampling.BILINEAR, box=(box[0], 0, box[2], high - low)
    )
    values = np.asarray(widened.crop((columns.start, 0, columns.stop, high - low)))
    return Image.fromarray(_weighted_sums(values, first - low, weights))


def _weights(
    length: int, box: tuple[float, float], count: int, part: slice
) -> tuple[NDArray[np.intp], NDArray[np.int32]]:
    """Return the first source pixel of each result pixel of `part`, and the weights of three."""
    begin, end = (np.float32(edge) for edge in box)
    place = np.arange(part.start, part.stop)
    centre = float(begin) + (place + 0.5) * (float(end - begin) / count)
    first = np.maximum(np.trunc(centre - 0.5), 0).astype(np.intp)
    last = np.minimum(np.trunc(centre + 1.5), length).astype(np.intp)
    taps = first[:, None] + np.arange(_TAPS)
    share = np.maximum(1 - np.abs(taps - centre[:, None] + 0.5), 0) * (taps < last[:, None])
    share /= (share[:, 0] + share[:, 1] + share[:, 2])[:, None]
    return first, (0.5 + share * (1 << _BITS)).astype(np.int32)


def _span(first: NDArray[np.intp], length: int) -> tuple[int, int]:
    """Return begin and end of the source pixels that are read."""
    return int(first.min()), min(int(first.max()) + _TAPS, length)


def _weighted_sums(
    values: NDArray[np.uint8],  # [length, ...]
    first: NDArray[np.intp],  # [n]
    weights: NDArray[np.int32],  # [n, taps]
) -> NDArray[np.uint8]:
    """Return the rounded weighted sums [n, ...] of `values`."""
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
        result[part] = total  # weights sum to 1: the sums stay in [0, 255]
    return result
