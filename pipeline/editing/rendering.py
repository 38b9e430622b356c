"""Render sequences of codes as one grid or one animation: faces, walks, mixes, group means."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, repeat
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.editing.animation import write_animation
from pipeline.editing.grid import draw_grid
from pipeline.editing.group_means import group_means
from pipeline.editing.mixing import MixSource, mix
from pipeline.errors import ConfigError, RequestError
from pipeline.interop.pictures import Drawing, rendered
from pipeline.models import RestyleModel
from pipeline.storage import file_place
from pipeline.table import Table
from pipeline.table.selection import Selection

Code = NDArray[np.float32]  # [n_styles, 512]
_ROWS = 64


class Drawn(NamedTuple):
    """Number of pictures in a file, and the width and height of the file's picture in pixels."""

    pictures: int
    width: int
    height: int


@dataclass(frozen=True)
class CodeSequence:
    """Codes to render in their order, which are read while they are rendered."""

    codes: Iterable[Code]
    count: int
    labels: Sequence[str] = ()  # one for each code, or none
    columns: int | None = None  # of a grid; None: about as many as rows


def chosen_faces(selection: Selection) -> CodeSequence:
    """Return the codes of the selected faces; `RequestError` if there are none."""
    codes = (code for _, batch in selection.code_batches(_ROWS) for code in batch)
    return CodeSequence(codes, selection.require_rows())


def faces_by_id(table: Table, ids: Sequence[str]) -> CodeSequence:
    """Return the codes of `ids` in their order; `UnknownImageError` for unknown ones."""
    return CodeSequence(table.w_plus(ids), len(ids))


def walk_over(faces: CodeSequence, frames: int, *, closed: bool = False) -> CodeSequence:
    """Return a straight walk over faces, with `frames` codes from each to the next (`walk`)."""
    legs = faces.count if closed else faces.count - 1
    count = legs * (frames - 1) + (not closed)
    columns = frames if faces.count == 2 and not closed else None
    return CodeSequence(walk(faces.codes, frames, closed=closed), count, columns=columns)


def mixed_faces(table: Table, sources: Sequence[MixSource]) -> CodeSequence:
    """Return the codes of the sources of a mix and, as the last one, the mix."""
    codes = table.w_plus([source.image_id for source in sources])
    labels = [f"{source.image_id}: rows {source.text}" for source in sources]
    shown = [*codes, mix(codes, sources)]
    return CodeSequence(shown, len(shown), [*labels, "mix"], columns=len(shown))


def mean_faces(selection: Selection, expression: str) -> CodeSequence:
    """Return the mean code of each group of the selected faces (`group_means`)."""
    groups = group_means(selection, expression)
    labels = [f"{group.value or 'none'} (n = {group.faces:,})" for group in groups]
    return CodeSequence([group.code for group in groups], len(groups), labels)


def interpolate(start: Code, end: Code, count: int) -> NDArray[np.float32]:
    """Return `count` codes [count, n_styles, 512] at equal distances from `start` to `end`.

    The first and the last are `start` and `end` exactly. Raises `ConfigError` for fewer than two.
    """
    if count < 2:
        raise ConfigError(f"from one face to the next there are at least 2 pictures, got {count}")
    part = np.linspace(0, 1, count, dtype=np.float64)[:, None, None]
    return ((1 - part) * start + part * end).astype(np.float32)


def walk(codes: Iterable[Code], count: int, *, closed: bool = False) -> Iterator[Code]:
    """Yield the codes of a walk over `codes`: `count` from each to the next, both included.

    A code between two legs comes once: `k` codes give `(k - 1) * (count - 1) + 1`. A closed walk
    returns to the first code and leaves the repeated one out, so that it can be shown in a loop:
    `k * (count - 1)`. Memory holds two codes and one leg. Raises `RequestError` for fewer than two
    codes.
    """
    ends: tuple[Code, Code] | None = None  # the first code and the last one so far
    for start, end in pairwise(codes):
        ends = (ends[0] if ends else start, end)
        yield from interpolate(start, end, count)[:-1]
    if ends is None:
        raise RequestError("a walk needs at least two faces")
    first, last = ends
    if closed:
        yield from interpolate(last, first, count)[:-1]
    else:
        yield last


def save_grid(
    uri: str,
    sequence: CodeSequence,
    model: RestyleModel,
    drawing: Drawing,
    *,
    columns: int | None = None,
    title: str = "",
) -> Drawn:
    """Render a sequence to one PNG at the path or URI `uri`."""
    cells = zip(
        rendered(model, sequence.codes, drawing),
        sequence.labels or repeat("", sequence.count),
        strict=False,
    )
    picture, size = draw_grid(
        cells,
        sequence.count,
        columns=columns or sequence.columns,
        title=title,
        labelled=bool(sequence.labels),
    )
    store, name = file_place(uri)
    store.put(name, picture)
    return Drawn(sequence.count, *size)


def save_animation(
    uri: str,
    sequence: CodeSequence,
    model: RestyleModel,
    drawing: Drawing,
    *,
    fps: int,
) -> Drawn:
    """Render a sequence to an animation at the path or URI `uri` (`write_animation`)."""
    return Drawn(*write_animation(uri, rendered(model, sequence.codes, drawing), fps))
