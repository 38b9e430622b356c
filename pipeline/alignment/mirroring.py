"""Parts and block means of an image mirrored over its edges, without building the mirrored image.

A block is summed over rows and then over columns of the image itself. Four channels are summed at
once, as lanes of 64-bit integers. The means have the bytes of Pillow's `reduce`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

Box: TypeAlias = tuple[int, int, int, int]  # left, top, right, bottom

_Places = NDArray[np.intp]
_FLIPS = (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM)


@dataclass(frozen=True)
class Axis:
    """Axis of a mirrored image: length without padding, padding, and a window."""

    length: int
    before: int  # 1 or more
    after: int  # 1 or more
    start: int  # of the window, in pixels of the mirrored image
    stop: int

    @functools.cached_property
    def places(self) -> _Places:
        """Source pixel of each pixel of the mirrored axis; the edge pixel is not repeated."""
        period = max(2 * (self.length - 1), 1)
        places = np.abs(np.arange(-self.before, self.length + self.after)) % period
        return np.minimum(places, period - places) if self.length > 1 else places * 0

    @functools.cached_property
    def depth(self) -> NDArray[np.float64]:
        """Depth of each pixel: 0 at the image's edge, 1 at the padding's end, below 0 inside."""
        place = np.arange(self.before + self.length + self.after)
        return 1 - np.minimum(place / self.before, (len(place) - 1 - place) / self.after)

    @property
    def inner(self) -> tuple[int, int]:
        """Begin and end of the window's part that is not mirrored, in pixels of the window."""
        stop = self.stop - self.start
        begin = min(max(self.before - self.start, 0), stop)
        return begin, min(max(self.before + self.length - self.start, begin), stop)


@dataclass(frozen=True)
class _Run:
    """Consecutive blocks of an axis, and the source pixels that they read."""

    block: int  # index of the first block
    places: _Places
    direction: int  # 1 or -1: contiguous pixels in this order; 0: the direction changes

    @property
    def low(self) -> int:
        return int(self.places.min())

    @property
    def high(self) -> int:
        return int(self.places.max()) + 1


def mirrored_window(
    image: Image.Image,  # RGB
    box: Box,  # the part of `image` that is mirrored
    axes: tuple[Axis, Axis],
) -> Image.Image:
    """Return the window of `box` of `image` mirrored over its edges."""
    across, down = axes
    left, top = box[0] - across.before + across.start, box[1] - down.before + down.start
    window = image.crop(
        (left, top, left + across.stop - across.start, top + down.stop - down.start)
    )
    (x0, x1), (y0, y1) = across.inner, down.inner
    width, height = window.size
    # Outside of the box the crop holds other pixels or black: replace them by mirrored strips.
    strips = ((0, 0, x0, height), (x1, 0, width, height), (x0, 0, x1, y0), (x0, y1, x1, height))
    for x, y, right, bottom in strips:
        if x < right and y < bottom:
            columns = across.places[across.start + x : across.start + right] + box[0]
            rows = down.places[down.start + y : down.start + bottom] + box[1]
            _paste_mirrored(window, (x, y), image, columns, rows)
    return window


def reduced(
    image: Image.Image,  # RGB
    box: Box,  # the part of `image` that is mirrored
    axes: tuple[Axis, Axis],
    step: int,
) -> tuple[Image.Image, Image.Image]:
    """Return the mirrored image reduced by `step` as by Pillow, and its every `step`-th pixel."""
    pixels = _channels(image, box)
    height, width, _ = pixels.shape
    columns, rows = (axis.places for axis in axes)
    size = -(-len(columns) // step), -(-len(rows) // step)
    lane = np.uint16 if 255 * step * step < 1 << 16 else np.uint32
    in_rows = np.empty((size[1], width * 4), lane)
    _sum_blocks(pixels.reshape(height, width * 4), rows, step, in_rows)
    # No lane overflows into the next. Transposed, so that whole columns are added at once.
    lanes = in_rows.view(np.uint64).reshape(size[1], width, -1)
    lanes = np.ascontiguousarray(lanes.swapaxes(0, 1))
    totals = np.empty((size[0], *lanes.shape[1:]), np.uint64)
    _sum_blocks(lanes, columns, step, totals)
    means = _means(totals.view(lane), (len(columns), len(rows)), step)
    firsts = pixels.view(np.uint32)[rows[::step, None], columns[::step], 0]
    return _image(means.view(np.uint32)[:, :, 0].T, size), _image(firsts, size)


def _channels(image: Image.Image, box: Box) -> NDArray[np.uint8]:
    """Return `box` of an RGB image as [height, width, 4]; the last channel is unused."""
    try:
        # The image's own memory, without a copy. Arrow's `to_numpy` would import pandas: 0.5 s.
        memory = np.frombuffer(pa.array(image).buffers()[-1], np.uint8)
    except ValueError:  # Pillow splits an image over 16 MB into several blocks
        return np.asarray(image.crop(box).convert("RGBX"))
    pixels = memory.reshape(image.height, image.width, 4)
    return pixels[box[1] : box[3], box[0] : box[2]]


def _image(pixels: NDArray[Any], size: tuple[int, int]) -> Image.Image:
    """Return the RGB image of pixels of four bytes each."""
    return Image.frombytes("RGB", size, pixels.tobytes(), "raw", "RGBX")


def _runs(places: _Places, step: int) -> Iterator[_Run]:
    """Cut an axis into runs of whole blocks of `step` that read the image in one direction."""
    turns = np.flatnonzero(np.diff(places, 2)) + 1  # pixels where the direction changes
    ends = [*turns.tolist(), len(places) - 1]
    begin, first = 0, 0
    for end in ends:  # pixels `first` to `end` have one direction
        low = max(-(-first // step), begin)
        high = (end + 1) // step
        if high > low:
            if low > begin:
                yield _Run(begin, places[begin * step : low * step], 0)
            inner = places[low * step : high * step]
            yield _Run(low, inner, _direction(inner))
            begin = high
        first = end
    if begin * step < len(places):
        yield _Run(begin, places[begin * step :], 0)


def _direction(places: _Places) -> int:
    """Return 1 or -1; 0 if an axis of one pixel is mirrored into many."""
    span = int(places[-1] - places[0])
    if abs(span) != len(places) - 1:
        return 0
    return 1 if span >= 0 else -1


def _sum_blocks(
    values: NDArray[Any],  # [length, ...]
    places: _Places,  # indices of `values` in the order of the mirrored axis
    step: int,
    out: NDArray[Any],  # [blocks, ...]
) -> None:
    """Write the sum of each block of `step` places; the last block may be shorter."""
    for run in _runs(places, step):
        count = -(-len(run.places) // step)
        sums = out[run.block : run.block + count]
        if not run.direction:
            for block in range(count):
                places_of_block = run.places[block * step : (block + 1) * step]
                np.add.reduce(values[places_of_block], axis=0, dtype=out.dtype, out=sums[block])
            continue
        part = values[run.low : run.high][:: run.direction]
        blocks = part.reshape(count, step, *values.shape[1:])
        np.copyto(sums, blocks[:, 0])
        for place in range(1, step):
            np.add(sums, blocks[:, place], out=sums)


def _means(totals: NDArray[Any], lengths: tuple[int, int], step: int) -> NDArray[np.uint8]:
    """Return the means of blocks [x, y, 4], rounded as Pillow's `reduce` rounds them."""
    means = np.empty(totals.shape, np.uint8)
    for columns, wide in _block_lengths(lengths[0], step):
        for rows, high in _block_lengths(lengths[1], step):
            area = wide * high
            # Pillow divides by multiplying with the truncated reciprocal of a 32-bit float.
            reciprocal = int(np.float32(1 << 32) / np.float32(256 * area))
            values = totals[columns, rows].astype(np.uint32)
            values += area // 2
            values *= reciprocal
            values >>= 24
            means[columns, rows] = values
    return means


def _block_lengths(length: int, step: int) -> Iterator[tuple[slice, int]]:
    """Yield the whole blocks of an axis with their length, then a shorter last one if any."""
    whole, rest = divmod(length, step)
    if whole:
        yield slice(0, whole), step
    if rest:
        yield slice(whole, whole + 1), rest


def _paste_mirrored(
    target: Image.Image, place: tuple[int, int], image: Image.Image, columns: _Places, rows: _Places
) -> None:
    """Paste `rows` and `columns` of `image` at `place`."""
    for row in _runs(rows, 1):
        for column in _runs(columns, 1):
            corner = place[0] + column.block, place[1] + row.block
            target.paste(_piece(image, column, row), corner)


def _piece(image: Image.Image, column: _Run, row: _Run) -> Image.Image:
    part = image.crop((column.low, row.low, column.high, row.high))
    if not (row.direction and column.direction):
        pixels = np.asarray(part)[row.places - row.low][:, column.places - column.low]
        return Image.fromarray(pixels)
    for flip, run in zip(_FLIPS, (column, row), strict=True):
        if run.direction < 0:
            part = part.transpose(flip)
    return part
