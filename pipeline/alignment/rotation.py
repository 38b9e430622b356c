"""Quarter turns of a photo, and the way back to its own coordinates."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

TURNS = (90, 180, 270)  # degrees clockwise that bring a photo upright
_TRANSPOSES = {  # which Pillow names by the turn the other way round
    90: Image.Transpose.ROTATE_270,
    180: Image.Transpose.ROTATE_180,
    270: Image.Transpose.ROTATE_90,
}


def turned(image: Image.Image, degrees: int) -> Image.Image:
    """`image` turned clockwise by 0, 90, 180 or 270 degrees; no pixel changes."""
    return image.transpose(_TRANSPOSES[degrees]) if degrees else image


def points_before(
    points: NDArray[Any],  # [n, 2] x, y of pixel centres in the turned image
    degrees: int,
    size: tuple[int, int],  # (width, height) before the turn
) -> NDArray[Any]:
    """The same points before a clockwise turn by `degrees`; a pixel's centre is a whole number."""
    right, bottom = size[0] - 1, size[1] - 1
    x, y = points[..., 0], points[..., 1]
    before = {0: (x, y), 90: (y, bottom - x), 180: (right - x, bottom - y), 270: (right - y, x)}
    return np.stack(before[degrees], axis=-1)


def box_before(
    box: NDArray[Any],  # [4] left, top, right, bottom: edges of pixels in the turned image
    degrees: int,
    size: tuple[int, int],  # (width, height) before the turn
) -> NDArray[Any]:
    """The same box before a clockwise turn by `degrees`."""
    # Edges lie half a pixel beside the centres.
    corners = points_before(box.reshape(2, 2) - 0.5, degrees, size) + 0.5
    return np.concatenate([corners.min(axis=0), corners.max(axis=0)])
