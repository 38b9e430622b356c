"""What lies outside of an image: mirrored, blurred and faded to the median, as FFHQ was padded.

The padding works in 8 bits and blurs at a lower resolution, where FFHQ's preparation works on
everything in floats: a crop with a quarter of padding differs by 0.2 grey levels on average.
The median is of the whole padded image, which is never made: it is reduced from the image itself,
and only the strips that are faded are computed at full resolution. Its readable twin, equal to the
byte, is `tests/alignment/plain_padding.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from pipeline.alignment.mirroring import Axis, Box, mirrored_window, reduced
from pipeline.alignment.resampling import resized_columns, resized_rows

BLUR = 0.02  # of the side: sigma of the blur that fades mirrored content

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

    @property
    def clear(self) -> tuple[int, int]:
        """Begin and end of the pixels that are not faded; twice the length where all are."""
        clear = np.flatnonzero(self.blur == 0)
        length = len(self.blur)
        return (int(clear[0]), int(clear[-1]) + 1) if len(clear) else (length, length)


@dataclass(frozen=True)
class _Fading:
    """Fades the strips along the edges of a window; `window` is changed."""

    window: Image.Image
    coarse: Image.Image  # the whole padded image, blurred, at a lower resolution
    fades: tuple[_Fade, _Fade]  # of the columns, of the rows
    median: tuple[int, int, int]

    def run(self) -> None:
        """Fade the left and right strips over the whole height, and those between them."""
        across, down = self.fades
        width, height = self.window.size
        left, right = across.clear
        for begin, end in ((0, left), (right, width)):
            if begin < end:
                self._fade(slice(begin, end), slice(0, height), self._blurred_columns(begin, end))
        top, bottom = down.clear
        for begin, end in ((0, top), (bottom, height)):
            if begin < end and left < right:
                blurred = self._blurred_rows(slice(left, right), slice(begin, end))
                self._fade(slice(left, right), slice(begin, end), blurred)

    def _blurred_columns(self, begin: int, end: int) -> Image.Image:
        across, down = self.fades
        width, height = self.window.size
        part = resized_columns(self.coarse, across.box, width, slice(begin, end))
        box = (0, down.box[0], end - begin, down.box[1])
        return part.resize((end - begin, height), Image.Resampling.BILINEAR, box=box)

    def _blurred_rows(self, columns: slice, rows: slice) -> Image.Image:
        across, down = self.fades
        box = (across.box[0], down.box[0], across.box[1], down.box[1])
        return resized_rows(self.coarse, box, self.window.size, columns, rows)

    def _fade(self, columns: slice, rows: slice, blurred: Image.Image) -> None:
        """Fade a part of the window to `blurred`, and that to the median."""
        box = (columns.start, rows.start, columns.stop, rows.stop)
        across, down = self.fades
        self.window.paste(blurred, box, _mask(across.blur[columns], down.blur[rows]))
        if across.median[columns].any() or down.median[rows].any():
            self.window.paste(self.median, box, _mask(across.median[columns], down.median[rows]))


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
