"""From 68 landmarks to the square that FFHQ cuts out (StyleGAN, arXiv 1812.04948, appendix A)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.images import Rejection, RejectReason

# Ranges of the iBUG order that dlib's predictor follows.
_FIRST_EYE = slice(36, 42)  # on the image's left
_SECOND_EYE = slice(42, 48)
_MOUTH_CORNERS = [48, 54]


def ffhq_quad(landmarks: NDArray[Any]) -> NDArray[np.float64]:
    """The corners [4, 2] of the square around a face, from its landmarks [68, 2].

    Order: top left, bottom left, bottom right, top right, in the landmarks' pixels. The square
    stands on the mean direction of the eye line and of the line across the eyes-to-mouth axis;
    its half side is the larger of 2.0 eye distances and 1.8 eye-to-mouth distances; its centre
    lies a tenth of the eye-to-mouth vector below the eyes. Rejects landmarks that are not finite
    or that span no face (`not_finite`).
    """
    points = np.asarray(landmarks, dtype=np.float64)
    first, second = points[_FIRST_EYE].mean(axis=0), points[_SECOND_EYE].mean(axis=0)
    eyes = (first + second) / 2
    across = second - first
    down = points[_MOUTH_CORNERS].mean(axis=0) - eyes

    direction = across - _turned(down)
    length = np.hypot(*direction)
    if not length > 0 or not np.isfinite(length):
        raise Rejection(RejectReason.NOT_FINITE, "the landmarks are not finite or span no face")
    x = direction / length * max(np.hypot(*across) * 2.0, np.hypot(*down) * 1.8)
    y = _turned(x)
    centre = eyes + 0.1 * down
    return np.stack([centre - x - y, centre - x + y, centre + x + y, centre + x - y])


def _turned(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    """A quarter turn clockwise as seen: the image's right becomes its down."""
    return np.array([-vector[1], vector[0]])
