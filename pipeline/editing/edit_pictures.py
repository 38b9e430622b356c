"""Pictures of edited codes: a grid of faces and strengths, files, frames of an animation."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from pipeline.editing.directions import Floats
from pipeline.editing.edit import Edits, signed
from pipeline.editing.grid import check_size
from pipeline.errors import ConfigError
from pipeline.interop.exporting import NamedSelection, put_files
from pipeline.interop.file_names import to_file_name
from pipeline.interop.pictures import Drawing, Pixels, frames_of, png
from pipeline.models import RestyleModel
from pipeline.reports.contact_sheet import INK, PALE, PAPER, Colour, drawable, fitting, font
from pipeline.reports.targets import Targets
from pipeline.table.selection import Selection

MAX_PICTURES = 2048  # of one grid, which is in memory
MAX_TILES = 64  # faces of one animation
CELL = 144  # default width of a picture of a grid
_GAP, _MARGIN, _LINE = 6, 16, 17
_ROWS = 32


@dataclass(frozen=True)
class Grid:
    """PNG of a grid, its numbers of faces and columns, and a note on targets, or ""."""

    picture: bytes
    faces: int
    columns: int
    note: str


def edit_grid(selection: Selection, model: RestyleModel, edits: Edits, width: int = CELL) -> Grid:
    """Draw the selected faces as rows: the target, if there is one, then every setting.

    Pictures are `width` pixels wide. Raises `ConfigError` for more than `MAX_PICTURES`, or if the
    grid would have too many pixels (`check_size`).
    """
    faces = selection.require_rows()
    columns = len(edits.settings) + 1
    if faces * columns > MAX_PICTURES:
        raise ConfigError(
            f"a grid of {faces} faces and {columns} columns has more than {MAX_PICTURES} pictures: "
            "choose fewer faces with --limit, or write files (--as images)"
        )
    targets = Targets(selection.table)
    rows: list[dict[str, Any]] = []
    codes: list[Floats] = []
    for batch, some in selection.code_batches(_ROWS, targets.columns):
        rows += batch.to_pylist()
        codes += list(some)
    crops = targets.crops(rows)
    height = max(1, round(width * model.frame_size[0] / model.frame_size[1]))
    headers = [["target"]] if crops else []
    headers += [
        [f"{name} {signed(value)}" for name, value in zip(edits.names, setting, strict=True)]
        for setting in edits.settings
    ]
    sheet = _Sheet(headers, len(rows), (width, height))
    for place, row in enumerate(rows):
        target = [crops.get(row["image_id"])] if crops else []
        pictures = frames_of(model, edits.apply(codes[place][None])[0])
        sheet.add(place, row["image_id"], [*target, *pictures])
    return Grid(sheet.png(), len(rows), len(headers), targets.summary())


def write_edited_images(
    selection: NamedSelection,
    model: RestyleModel,
    edits: Edits,
    uri: str,
    drawing: Drawing,
) -> int:
    """Write a PNG of each face and setting, `<setting>/<name>.png`; return their number.

    The setting is the folder's name, such as `smile+3` or `smile+3_age-1`.
    """
    folders = [folder_name(edits, setting) for setting in range(len(edits.settings))]
    longest = max(folders, key=lambda name: len(name.encode()))
    selection.check_files(uri, ".png", f"{longest}/")

    def files() -> Iterator[tuple[str, bytes]]:
        for row in selection.named_rows("w_plus"):
            edited = edits.apply(row["w_plus"][None])[0]
            name = to_file_name(row["name"])
            for folder, picture in zip(folders, frames_of(model, edited, drawing), strict=True):
                yield f"{folder}/{name}.png", png(picture)

    return put_files(uri, files(), selection)


def folder_name(edits: Edits, setting: int) -> str:
    """Return the name of the folder with the pictures of a setting."""
    pairs = zip(edits.names, edits.settings[setting], strict=True)
    return to_file_name("_".join(f"{name}{signed(strength)}" for name, strength in pairs))


def edit_frames(
    selection: Selection,
    model: RestyleModel,
    edits: Edits,
    frames: int,
    drawing: Drawing,
) -> Iterator[Pixels]:
    """Yield the frames of an animation of the selected faces side by side, which ends as it begins.

    Strengths go linearly from one setting to the next in `frames` steps, then back. Raises
    `ConfigError` for fewer than two settings or more than `MAX_TILES` faces, and reads no code
    then.
    """
    if len(edits.settings) < 2:
        raise ConfigError("a video needs at least two strengths, as in --strength -3,3")
    faces = selection.require_rows()
    if faces > MAX_TILES:
        raise ConfigError(
            f"a video shows at most {MAX_TILES} faces, not {faces:,}: choose with --limit"
        )
    codes = np.concatenate([codes for _, codes in selection.code_batches(_ROWS)])
    return (
        _tiled(frames_of(model, edits.apply_one(codes, strengths), drawing))
        for strengths in _path(edits.settings, frames)
    )


def _path(settings: Sequence[Sequence[float]], frames: int) -> Iterator[list[float]]:
    """Yield the strengths from the first setting to the last and back, without a repeated end."""
    stops = [*settings, *settings[-2::-1]]
    for start, end in itertools.pairwise(stops):
        for frame in range(frames):
            part = frame / frames
            yield [(1 - part) * a + part * b for a, b in zip(start, end, strict=True)]


def _tiled(pictures: Pixels) -> Pixels:
    """Return pictures [n, h, w, 3] side by side in a grid that is about square."""
    count, height, width, _ = pictures.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    tiled = np.full((rows * height, columns * width, 3), 255, np.uint8)
    for place, picture in enumerate(pictures):
        top, left = place // columns * height, place % columns * width
        tiled[top : top + height, left : left + width] = picture
    return tiled


class _Sheet:
    """Picture of a grid with header lines above its columns, and the id of each face below it."""

    def __init__(self, headers: list[list[str]], faces: int, cell: tuple[int, int]) -> None:
        self._cell = cell
        self._top = _MARGIN + _LINE * max(map(len, headers)) + 4
        width = 2 * _MARGIN + len(headers) * (cell[0] + _GAP) - _GAP
        height = self._top + faces * self._row_height + _MARGIN - _GAP
        check_size((width, height), faces * len(headers))
        self._image = Image.new("RGB", (width, height), PAPER)
        self._draw = ImageDraw.Draw(self._image)
        for column, lines in enumerate(headers):
            for number, line in enumerate(lines):
                y = _MARGIN + _LINE * (number + 0.5)
                self._text(line, self._left(column) + cell[0] / 2, y, INK, "mm", cell[0])

    def add(self, place: int, label: str, pictures: Sequence[Pixels | None]) -> None:
        """Draw the row of a face."""
        top = self._top + place * self._row_height
        for column, picture in enumerate(pictures):
            if picture is not None:
                small = Image.fromarray(picture).resize(self._cell, Image.Resampling.LANCZOS)
                self._image.paste(small, (self._left(column), top))
        width = self._image.width - 2 * _MARGIN
        self._text(label, _MARGIN, top + self._cell[1] + _LINE / 2, PALE, "lm", width)

    def png(self) -> bytes:
        """Return the picture's bytes."""
        sink = io.BytesIO()
        self._image.save(sink, "PNG")
        return sink.getvalue()

    @property
    def _row_height(self) -> int:
        return self._cell[1] + _LINE + _GAP

    def _left(self, column: int) -> int:
        return _MARGIN + column * (self._cell[0] + _GAP)

    def _text(
        self, text: str, x: float, y: float, colour: Colour, anchor: str, width: float
    ) -> None:
        line = fitting(drawable(text), int(width))
        self._draw.text((x, y), line, colour, font(12), anchor=anchor)
