"""Draw pictures in a grid, with or without a line of text below each."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable
from itertools import chain

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipeline.errors import ConfigError, RequestError
from pipeline.reports.contact_sheet import INK, PALE, PAPER, TITLE, drawable, fitting, font

Pixels = NDArray[np.uint8]
Cell = tuple[Pixels, str]  # picture, uint8 [h, w, 3] of one size for all, and its text

# Pillow, and programs that use it, warn about larger pictures.
MAX_PIXELS = 80_000_000
_GAP, _MARGIN, _CAPTION = 4, 12, 20
_ONE_ROW = 4  # pictures
_MIN_LABELLED = 128  # width of a cell with a text


def draw_grid(
    cells: Iterable[Cell],
    count: int,
    *,
    columns: int | None = None,
    title: str = "",
    labelled: bool = False,
) -> tuple[bytes, tuple[int, int]]:
    """Draw `count` pictures from left to right and from top to bottom; return PNG and its size.

    Without `columns` up to four pictures are one row, and more are about as wide as high. Pictures
    are pasted as they are, one after another while `cells` yields them: memory holds the grid and
    one picture. Raises `ConfigError` for a grid of over 80 million pixels and `RequestError` for no
    pictures.
    """
    waiting = iter(cells)
    first = next(waiting, None)
    if first is None:
        raise RequestError("there are no pictures to draw")
    height, width = first[0].shape[:2]
    columns = min(count, columns or max(_ONE_ROW, math.ceil(math.sqrt(count))))
    cell_width = max(width, _MIN_LABELLED) if labelled else width
    cell_height = height + (_CAPTION if labelled else 0)
    top = _MARGIN + (TITLE if title else 0)
    rows = math.ceil(count / columns)
    size = (
        2 * _MARGIN + columns * (cell_width + _GAP) - _GAP,
        top + rows * (cell_height + _GAP) - _GAP + _MARGIN,
    )
    check_size(size, count)
    canvas = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(canvas)
    if title:
        line = fitting(drawable(title), size[0] - 2 * _MARGIN, 16)
        draw.text((_MARGIN, _MARGIN), line, INK, font(16))
    for index, (picture, text) in zip(range(count), chain([first], waiting), strict=False):
        x = _MARGIN + index % columns * (cell_width + _GAP)
        y = top + index // columns * (cell_height + _GAP)
        canvas.paste(Image.fromarray(picture), (x + (cell_width - width) // 2, y))
        if labelled:
            place = (x + cell_width / 2, y + height + _CAPTION / 2)
            draw.text(place, fitting(drawable(text), cell_width, 12), PALE, font(12), anchor="mm")
    sink = io.BytesIO()
    canvas.save(sink, "PNG")
    return sink.getvalue(), size


def check_size(size: tuple[int, int], count: int) -> None:
    """Raise `ConfigError` for a grid of over 80 million pixels; `size` is width and height."""
    if size[0] * size[1] > MAX_PIXELS:
        raise ConfigError(
            f"a grid of {count} pictures would have {size[0]}×{size[1]} pixels, more than "
            f"{MAX_PIXELS:,}: choose fewer faces with --limit, or a smaller --size"
        )
