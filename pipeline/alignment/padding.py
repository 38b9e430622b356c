"""What lies outside of an image: mirrored, blurred and faded to the median, as FFHQ was padded.

The padding works in 8 bits and blurs at a lower resolution, where FFHQ's preparation works on
everything in floats: a crop with a quarter of padding differs by 0.2 grey levels on average.
The median is of the whole padded image, which is never made: blocks of mirrored parts have the sums
of blocks of the image, and only the strips that are faded are computed at full resolution. Its
readable twin, equal to the byte, is `tests/alignment/plain_padding.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from pipeline.alignment.resampling import resized_rows

BLUR = 0.02  # of the side: sigma of the blur that fades mirrored content

_Floats = NDArray[np.float64]
_Places = NDArray[np.intp]
_FLIPS = (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM)


def padded(
    region: Image.Image,  # RGB
    pads: tuple[int, int, int, int],  # left, top, right, bottom; each 1 or more
    side: float,  # of the square that is cut out
    window: tuple[int, int, int, int],  # left, top, right, bottom, in pixels of the padded image
) -> Image.Image:
    """The part `window` of `region` with `pads` around it."""
    left, top, right, bottom = pads
    axes = (
        _Axis(region.width, left, right, window[0], window[2]),
        _Axis(region.height, top, bottom, window[1], window[3]),
    )
    sigma = side * BLUR
    step = max(int(sigma / 2), 1)
    coarse, sampled = _coarse(region, axes, step)
    coarse = coarse.filter(ImageFilter.GaussianBlur(sigma / step))
    across, down = axes[0].depth[::step], axes[1].depth[::step]
    median = _median(
        Image.composite(coarse, sampled, _mask(_blur_share(across), _blur_share(down)))
    )
    return _faded(_gathered(region, axes), coarse, axes, step, median)


@dataclass(frozen=True)
class _Axis:
    """One axis of the padded image: its length without padding, the padding, and the window."""

    length: int
    before: int
    after: int
    start: int
    stop: int

    @property
    def places(self) -> _Places:
        """The pixel of the region at each pixel of the padded image."""
        return np.pad(np.arange(self.length), (self.before, self.after), mode="reflect")

    @property
    def depth(self) -> _Floats:
        """0 at the image's edge, 1 at the padding's outer edge, below 0 inside."""
        place = np.arange(self.before + self.length + self.after)
        return 1 - np.minimum(place / self.before, (len(place) - 1 - place) / self.after)

    @property
    def window_depth(self) -> _Floats:
        """`depth` inside of the window."""
        return self.depth[self.start : self.stop]


@dataclass(frozen=True)
class _Run:
    """Consecutive blocks of an axis: where they begin, and their pixels of the region."""

    block: int
    places: _Places
    direction: int  # 1 or -1: the pixels lie side by side in this order; 0: they turn back

    @property
    def low(self) -> int:
        return int(self.places.min())

    @property
    def high(self) -> int:
        return int(self.places.max()) + 1


def _runs(places: _Places, step: int) -> Iterator[_Run]:
    """Cut an axis into runs of whole blocks of `step` that read the region in one direction."""
    turns = np.flatnonzero(np.diff(places, 2)) + 1  # the pixels after which the direction changes
    ends = [*turns.tolist(), len(places) - 1]
    begin, first = 0, 0
    for end in ends:  # both `first` and `end` are in the monotonous stretch
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
    """1 or -1; 0 for the one pixel of an axis that is mirrored into many."""
    span = int(places[-1] - places[0])
    if abs(span) != len(places) - 1:
        return 0
    return 1 if span >= 0 else -1


def _coarse(
    region: Image.Image, axes: tuple[_Axis, _Axis], step: int
) -> tuple[Image.Image, Image.Image]:
    """The padded image reduced by `step`, and its every `step`-th pixel."""
    columns, rows = (list(_runs(axis.places, step)) for axis in axes)
    size = tuple(-(-len(axis.depth) // step) for axis in axes)
    coarse, sampled = (Image.new("RGB", (size[0], size[1]), None) for _ in range(2))
    whole = _Run(0, axes[0].places, 0)
    for row in rows:
        for column in columns if row.direction else [whole]:
            blocks = _blocks if row.direction and column.direction else _odd_blocks
            means, firsts = blocks(region, column, row, step)
            coarse.paste(means, (column.block, row.block))
            sampled.paste(firsts, (column.block, row.block))
    return coarse, sampled


def _blocks(
    region: Image.Image, column: _Run, row: _Run, step: int
) -> tuple[Image.Image, Image.Image]:
    """Of blocks that lie in the region as they are, or turned over: means, and first pixels."""
    box = (column.low, row.low, column.high, row.high)
    size = len(column.places) // step, len(row.places) // step
    # The pixel that a block begins with is its last one where the axis is turned over.
    x, y = (
        run.low + (0 if run.direction > 0 else step - 1) + 0.5 - step / 2 for run in (column, row)
    )
    extent = (x, y, x + size[0] * step, y + size[1] * step)
    firsts = region.transform(size, Image.Transform.EXTENT, extent, Image.Resampling.NEAREST)
    return (
        _turned_over(region.reduce(step, box), column, row),
        _turned_over(firsts, column, row),
    )


def _odd_blocks(
    region: Image.Image, column: _Run, row: _Run, step: int
) -> tuple[Image.Image, Image.Image]:
    """The same of other blocks, over which the image turns back, or which are cut short."""
    pixels = _taken(region, column.places, row.places)
    return Image.fromarray(pixels).reduce(step), Image.fromarray(pixels[::step, ::step])


def _turned_over(image: Image.Image, column: _Run, row: _Run) -> Image.Image:
    for flip, run in zip(_FLIPS, (column, row), strict=True):
        if run.direction < 0:
            image = image.transpose(flip)
    return image


def _taken(region: Image.Image, columns: _Places, rows: _Places) -> NDArray[np.uint8]:
    """The pixels of `region` at every row and column: [rows, columns, 3]."""
    left, top = int(columns.min()), int(rows.min())
    part = region.crop((left, top, int(columns.max()) + 1, int(rows.max()) + 1))
    pixels: NDArray[np.uint8] = np.asarray(part)[rows - top][:, columns - left]
    return pixels


def _gathered(region: Image.Image, axes: tuple[_Axis, _Axis]) -> Image.Image:
    """The window of the padded image, sharp."""
    columns, rows = (axis.places[axis.start : axis.stop] for axis in axes)
    image = Image.new("RGB", (len(columns), len(rows)), None)
    for row in _runs(rows, 1):
        for column in _runs(columns, 1):
            image.paste(_piece(region, column, row), (column.block, row.block))
    return image


def _piece(region: Image.Image, column: _Run, row: _Run) -> Image.Image:
    if not (row.direction and column.direction):
        return Image.fromarray(_taken(region, column.places, row.places))
    part = region.crop((column.low, row.low, column.high, row.high))
    return _turned_over(part, column, row)


def _faded(
    sharp: Image.Image,
    coarse: Image.Image,
    axes: tuple[_Axis, _Axis],
    step: int,
    median: tuple[int, int, int],
) -> Image.Image:
    """The window with its strips blurred and faded; changes `sharp`."""
    width, height = sharp.size
    across, down = (axis.window_depth for axis in axes)
    (x0, x1), (y0, y1) = ((axis.start / step, axis.stop / step) for axis in axes)
    # The boxes are those of a resize in one go: Pillow rounds them, and its rows come second.
    wide = coarse.resize(
        (width, coarse.height), Image.Resampling.BILINEAR, box=(x0, 0, x1, coarse.height)
    )
    left, right = _inner(across)
    for begin, end in ((0, left), (right, width)):
        if begin < end:
            part = wide.crop((begin, 0, end, coarse.height))
            size, box = (end - begin, height), (0, y0, end - begin, y1)
            blurred = part.resize(size, Image.Resampling.BILINEAR, box=box)
            _fade(sharp, blurred, (begin, 0), across[begin:end], down, median)
    top, bottom = _inner(down)
    for begin, end in ((0, top), (bottom, height)):
        if begin < end and left < right:
            part = wide.crop((left, 0, right, coarse.height))
            blurred = resized_rows(part, (y0, y1), height, slice(begin, end))
            _fade(sharp, blurred, (left, begin), across[left:right], down[begin:end], median)
    return sharp


def _fade(
    sharp: Image.Image,
    blurred: Image.Image,
    place: tuple[int, int],
    across: _Floats,  # depths of the columns and rows of `blurred`
    down: _Floats,
    median: tuple[int, int, int],
) -> None:
    """Fade what lies at `place` of `sharp` to `blurred`, and that to the median."""
    box = (*place, place[0] + blurred.width, place[1] + blurred.height)
    faded = sharp.crop(box)
    faded.paste(blurred, None, _mask(_blur_share(across), _blur_share(down)))
    faded.paste(median, None, _mask(across, down))
    sharp.paste(faded, place)


def _inner(depth: _Floats) -> tuple[int, int]:
    """Where the pixels begin and end that are not faded; twice the length where all are."""
    clear = np.flatnonzero(_levels(_blur_share(depth)) == 0)
    return (int(clear[0]), int(clear[-1]) + 1) if len(clear) else (len(depth), len(depth))


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


def _mask(across: _Floats, down: _Floats) -> Image.Image:
    """The larger of a column's and a row's share, clipped to [0, 1], as an 8-bit mask."""
    return Image.fromarray(np.maximum.outer(_levels(down), _levels(across)))


def _levels(shares: _Floats) -> NDArray[np.uint8]:
    levels: NDArray[Any] = np.rint(np.clip(shares, 0, 1) * 255)
    return levels.astype(np.uint8)
