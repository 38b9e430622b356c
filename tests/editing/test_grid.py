"""A grid shows pictures as they are, in rows."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from pipeline.editing.grid import draw_grid
from pipeline.errors import ConfigError, RequestError

SIDE, STEP, MARGIN = 16, 20, 12


def picture(level: int, side: int = SIDE) -> np.ndarray:
    return np.full((side, side, 3), level, np.uint8)


def drawn(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def test_pictures_stand_in_rows_of_the_columns() -> None:
    png, size = draw_grid(((picture(40 * n), "") for n in range(5)), 5, columns=3)
    grid = drawn(png)
    assert size == (2 * MARGIN + 3 * STEP - 4, 2 * MARGIN + 2 * STEP - 4) == grid.shape[1::-1]
    for index in range(5):
        x, y = MARGIN + index % 3 * STEP, MARGIN + index // 3 * STEP
        assert (grid[y : y + SIDE, x : x + SIDE] == 40 * index).all()
    assert (grid[MARGIN + STEP : MARGIN + STEP + SIDE, MARGIN + 2 * STEP :] == 255).all()


def test_labels_stand_below_centred_pictures() -> None:
    cells = [(picture(0), "first"), (picture(0), "")]
    grid = drawn(draw_grid(cells, 2, labelled=True, title="a title")[0])
    assert (grid[MARGIN + 34 : MARGIN + 34 + SIDE, MARGIN + 56 : MARGIN + 56 + SIDE] == 0).all()
    below = grid[MARGIN + 34 + SIDE + 1 :]
    assert (below[:, : MARGIN + 128] < 200).any()
    assert (below[:, MARGIN + 132 :] == 255).all(), "an empty text"


def test_too_large_grid_is_refused_at_its_first_picture() -> None:
    def pictures() -> Iterator[tuple[np.ndarray, str]]:
        yield picture(0, side=1024), ""
        raise AssertionError("a second picture was rendered")

    with pytest.raises(ConfigError, match="choose fewer faces with --limit, or a smaller --size"):
        draw_grid(pictures(), 100)
    with pytest.raises(RequestError, match="no pictures"):
        draw_grid([], 0)
