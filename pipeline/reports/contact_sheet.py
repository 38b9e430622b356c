"""Contact sheet: target, average face and every step of some inversions."""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pipeline.errors import ShapeError

Pixels = NDArray[np.uint8]
Colour = tuple[int, int, int]

PAPER: Colour = (255, 255, 255)
INK: Colour = (32, 33, 36)
PALE: Colour = (110, 114, 120)
EMPTY: Colour = (241, 243, 244)
ACCENT: Colour = (26, 115, 232)
GAP, MARGIN = 8, 20
TITLE, HEADER, CAPTION = 34, 26, 22  # heights of the text lines in pixels
FRAME = 3  # width of the line around the best step


@dataclass(frozen=True)
class SheetRow:
    """Pictures of one face, uint8 [h, w, 3] of one size, and its metrics, one per step."""

    target: Pixels | None  # None: not available
    average: Pixels
    steps: Sequence[Pixels]
    bootstrap: Sequence[Pixels | None] = ()  # steps of the model that gave the initial codes
    label: str = ""  # below the target: the image's key, shortened to fit
    l2: Sequence[float | None] = ()  # None: not measured
    lpips: Sequence[float | None] = ()
    best_step: int | None = None  # from 1; framed

    def captions(self) -> list[str]:
        """Return the line below each picture."""
        steps = []
        for index in range(len(self.steps)):
            numbers = [
                f"{name} {value:.{digits}f}"
                for name, values, digits in (("L2", self.l2, 3), ("LPIPS", self.lpips, 2))
                for value in values[index : index + 1]
                if value is not None
            ]
            steps.append("  ".join(numbers))
        return [self.label, "", *[""] * len(self.bootstrap), *steps]

    @property
    def pictures(self) -> list[Pixels | None]:
        """Pictures of the row, from left to right."""
        return [self.target, self.average, *self.bootstrap, *self.steps]


def contact_sheet(
    rows: Sequence[SheetRow],
    *,
    title: str = "",
    cell_width: int = 144,
    step_name: str = "step",
    best_only: bool = False,
) -> bytes:
    """Draw a PNG with one row per face: target, average face, then its steps.

    Steps of a bootstrap model come first, named "inversion". A row with fewer steps ends earlier.
    `best_only` says that the steps of each row are its best one alone. A row without a target has
    an empty cell that says so. Pictures are resized to `cell_width` and keep their aspect ratio.
    Equal rows give equal bytes. Raises `ShapeError` for no rows, pictures of different sizes, and
    rows with different numbers of bootstrap steps.
    """
    height, width, n_bootstrap, n_steps = _common_shape(rows)
    cell = (cell_width, round(cell_width * height / width))
    top = MARGIN + (TITLE if title else 0) + HEADER
    sheet = Image.new(
        "RGB",
        (
            2 * MARGIN + (n_bootstrap + n_steps + 2) * (cell[0] + GAP) - GAP,
            top + len(rows) * (cell[1] + CAPTION + GAP) + MARGIN - GAP,
        ),
        PAPER,
    )
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((MARGIN, MARGIN - 4), drawable(title), INK, font(20))
    bootstrap = ["inversion", *(f"inversion {number}" for number in range(2, n_bootstrap + 1))]
    steps = [f"{step_name} {number}" for number in range(1, n_steps + 1)]
    names = [*bootstrap[:n_bootstrap], *([f"best {step_name}"] if best_only else steps)]
    for column, name in enumerate(["target", "average face", *names]):
        x = MARGIN + column * (cell[0] + GAP) + cell[0] / 2
        draw.text((x, top - HEADER / 2), drawable(name), INK, font(15), anchor="mm")
    for index, row in enumerate(rows):
        _draw_row(sheet, row, top + index * (cell[1] + CAPTION + GAP), cell)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _draw_row(sheet: Image.Image, row: SheetRow, y: int, cell: tuple[int, int]) -> None:
    draw = ImageDraw.Draw(sheet)
    best = None if row.best_step is None else row.best_step + 1 + len(row.bootstrap)
    for column, (picture, caption) in enumerate(zip(row.pictures, row.captions(), strict=True)):
        x = MARGIN + column * (cell[0] + GAP)
        if picture is None:
            draw.rectangle((x, y, x + cell[0] - 1, y + cell[1] - 1), fill=EMPTY)
            middle = (x + cell[0] / 2, y + cell[1] / 2)
            draw.text(middle, "no target", PALE, font(12), anchor="mm")
        else:
            image = Image.fromarray(picture).resize(cell, Image.Resampling.LANCZOS)
            sheet.paste(image, (x, y))
        colour = PALE
        if column == best:
            colour = ACCENT
            edges = (x - FRAME, y - FRAME, x + cell[0] + FRAME - 1, y + cell[1] + FRAME - 1)
            draw.rectangle(edges, outline=ACCENT, width=FRAME)
        place = (x + cell[0] / 2, y + cell[1] + CAPTION / 2)
        draw.text(place, fitting(drawable(caption), cell[0]), colour, font(12), anchor="mm")


def drawable(text: str) -> str:
    """Return `text` in ASCII, as the font lacks most other characters.

    Accents are removed. Other characters are escaped, such as `\\u4e2d`, so that keys in other
    scripts stay different.
    """
    return "".join(map(_plain, text))


def _plain(char: str) -> str:
    if char.isascii() and char.isprintable():
        return char
    if unicodedata.combining(char):
        return ""
    letter = unicodedata.normalize("NFD", char)[0]
    plain = letter.isascii() and letter.isprintable()  # False for line breaks
    return letter if plain else char.encode("unicode_escape").decode()


def fitting(text: str, width: int, size: int = 12) -> str:
    """Return `text`, or the longest end of it that fits into `width` pixels in a font of `size`.

    No character is narrower than a pixel, so that at most `width` characters are measured.
    """
    if len(text) <= width and font(size).getlength(text) <= width:
        return text
    text = text[-width:]
    while text and font(size).getlength("…" + text) > width:
        text = text[1:]
    return "…" + text


@cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return Pillow's built-in font, so that a sheet is the same on every machine."""
    return ImageFont.load_default(size)


def _common_shape(rows: Sequence[SheetRow]) -> tuple[int, int, int, int]:
    """Return height, width, the number of bootstrap steps and the maximum number of steps."""
    pictures = [picture for row in rows for picture in row.pictures if picture is not None]
    shapes = {picture.shape for picture in pictures}
    bootstrap = {len(row.bootstrap) for row in rows}  # equal, so that steps share their columns
    if len(shapes) != 1 or len(bootstrap) != 1 or any(p.dtype != np.uint8 for p in pictures):
        raise ShapeError(
            "a contact sheet needs at least one row, uint8 pictures [h, w, 3] of one size and the "
            f"same number of bootstrap steps per row, got {len(rows)} rows of shapes "
            f"{sorted(shapes)}"
        )
    height, width, _ = shapes.pop()
    return height, width, bootstrap.pop(), max(len(row.steps) for row in rows)
