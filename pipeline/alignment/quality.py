"""Quality measures of an aligned face: tilt, turn of the head, and sharpness."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.alignment.settings import FFHQ_SIZE

_JAW_ENDS = (0, 16)
_NOSE_TIP = 30
_OUTER_EYE_CORNERS = (36, 45)


def roll_deg(landmarks: NDArray[np.float32]) -> float:
    """Return the angle of the line between the outer eye corners, degrees in (-180, 180].

    0 is level; positive is clockwise. `landmarks` are [68, 2].
    """
    first, second = landmarks[list(_OUTER_EYE_CORNERS)].astype(np.float64)
    x, y = second - first
    return math.degrees(math.atan2(y, x))


def yaw(landmarks: NDArray[np.float32]) -> float:
    """Return the position of the nose tip between the ends of the jaw line, clipped to [-1, 1].

    0 is midway (frontal), 1 at the jaw's end on the image's right, -1 at the other end. Not an
    angle: about the sine of the head's turn. `landmarks` are [68, 2].
    """
    first, second = landmarks[list(_JAW_ENDS)].astype(np.float64)
    axis = second - first
    length = float(axis @ axis)
    if length == 0:
        return 0.0
    along = float((landmarks[_NOSE_TIP] - first) @ axis) / length
    return min(max(2 * along - 1, -1.0), 1.0)


def sharpness(crop: Image.Image) -> float:
    """Return the variance of the 4-neighbour Laplacian of the grey crop, in squared grey levels.

    Grey levels are 0 to 255. Crops over 256 pixels are measured at 256 (bilinear), so that runs
    with different output sizes can be compared.
    """
    grey = crop.convert("L")
    if max(grey.size) > FFHQ_SIZE:
        grey = grey.resize((FFHQ_SIZE, FFHQ_SIZE), Image.Resampling.BILINEAR)
    v = np.asarray(grey).astype(np.int16)  # exact, and half the time of floats
    if min(v.shape) < 3:
        return 0.0
    laplacian = v[:-2, 1:-1] + v[2:, 1:-1] + v[1:-1, :-2] + v[1:-1, 2:] - 4 * v[1:-1, 1:-1]
    return float(laplacian.astype(np.float32).var())
