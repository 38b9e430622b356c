"""What lies outside of an image: mirrored, blurred and faded to the median, as FFHQ was padded.

The padding works in 8 bits and blurs at a lower resolution, where FFHQ's preparation works on
everything in floats: a crop with a quarter of padding differs by 0.2 grey levels on average.
The median is of the whole padded image, which is never made: it is reduced from the image itself,
and only the strips that are faded are computed at full resolution. Its readable twin, equal to the
byte, is `tests/alignment/plain_padding.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from pipeline.alignment.mirroring import Axis, Box, mirrored_window, reduced
from pipeline.alignment.resampling import resized_part

BLUR = 0.02  # of the side: sigma of the blur that fades mirrored content
MARGIN = 3  # pixels of the window around the square's corners; a crop reads the first at its end

_Floats = NDArray[np.float64]
_Levels = NDArray[np.uint8]


def padded(
    image: Image.Image,  # RGB
    box: Box,  # the part of `image` that is padded
    pads: tuple[int, int, int, int],  # left, top, right, bottom; each 1 or more
    side: float,  # of the square that is cut out
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
    _Fading(window_image, coarse, (_Fade.of(axes[0], step), _Fade.of(axes[1], step)), median).run()
    return window_image


@dataclass(frozen=True)
class _Fade:
    """One axis of the window: how much is faded at each of its pixels, and where it is blurred."""

    blur: _Levels  # how much of the blurred image shows, of 255
    median: _Levels  # how much of the median
    box: tuple[float, float]  # begin and end of the window in the blurred image

    @classmethod
    def of(cls, axis: Axis, step: int) -> _Fade:
        """Return what the window of `axis` needs."""
        depth = axis.depth[axis.start : axis.stop]
        box = axis.start / step, axis.stop / step
        return cls(_levels(_blur_share(depth)), _levels(depth), box)


@dataclass(frozen=True)
class _Fading:
    """Fades the strips along the edges of a window; `window` is changed.

    The outermost pixels, which no crop reads (`MARGIN`), stay as they are.
    """

    window: Image.Image
    coarse: Image.Image  # the whole padded image, blurred, at a lower resolution
    fades: tuple[_Fade, _Fade]  # of the columns, of the rows
    median: tuple[int, int, int]

    def run(self) -> None:
        """Fade to the blurred image, and that to the median."""
        across, down = self.fades
        for columns, rows in _strips(across.blur, down.blur):
            mask = _mask(across.blur[columns], down.blur[rows])
            self.window.paste(self._blurred(columns, rows), _box(columns, rows), mask)
        for columns, rows in _strips(across.median, down.median):
            mask = _mask(across.median[columns], down.median[rows])
            self.window.paste(self.median, _box(columns, rows), mask)

    def _blurred(self, columns: slice, rows: slice) -> Image.Image:
        """Return a part of the blurred image at the window's resolution."""
        across, down = (fade.box for fade in self.fades)
        box = (across[0], down[0], across[1], down[1])
        return resized_part(self.coarse, box, self.window.size, (columns, rows))


def _strips(across: _Levels, down: _Levels) -> Iterator[tuple[slice, slice]]:
    """Columns and rows of the parts that are faded: left, right, and above and below between."""
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
    """Begin and end of what is faded before the clear pixels of an axis, and behind them."""
    first, last = MARGIN, len(levels) - MARGIN + 1
    clear = np.flatnonzero(levels == 0)
    if not len(clear):
        return (first, last), (last, last)
    return (first, max(int(clear[0]), first)), (min(int(clear[-1]) + 1, last), last)


def _box(columns: slice, rows: slice) -> Box:
    return columns.start, rows.start, columns.stop, rows.stop


def _blur_share(depth: _Floats) -> _Floats:
    """How much of the blurred image shows at a depth: none a third inside, all at the edge."""
    return depth * 3 + 1


def _median(image: Image.Image) -> tuple[int, int, int]:
    """The median of each channel, rounded; of an even number of pixels the mean of two."""
    counts = np.reshape(image.histogram(), (3, 256)).cumsum(axis=1)
    total = image.width * image.height
    ranks = ((total - 1) // 2 + 1, total // 2 + 1)
    low, high = ([int(np.searchsorted(c, rank)) for c in counts] for rank in ranks)
    red, green, blue = (round((one + other) / 2) for one, other in zip(low, high, strict=True))
    return red, green, blue


def _mask(across: _Levels, down: _Levels) -> Image.Image:
    """The larger of a column's and a row's level, as an 8-bit mask."""
    return Image.fromarray(np.maximum.outer(down, across))


def _levels(shares: _Floats) -> _Levels:
    levels: NDArray[Any] = np.rint(np.clip(shares, 0, 1) * 255)
    return levels.astype(np.uint8)
