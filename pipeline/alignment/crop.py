"""Crop a face as FFHQ does: quad from 68 landmarks, then shrink, crop, pad and warp."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.alignment.mirroring import Box
from pipeline.alignment.padding import MARGIN, padded
from pipeline.images import Rejection, RejectReason

# Landmark indices in the iBUG order of dlib's predictor.
_FIRST_EYE = slice(36, 42)  # on the image's left
_SECOND_EYE = slice(42, 48)
_MOUTH_CORNERS = [48, 54]


def ffhq_quad(landmarks: NDArray[Any]) -> NDArray[np.float64]:
    """Return the corners [4, 2] of the square around a face, from its landmarks [68, 2].

    Order: top left, bottom left, bottom right, top right, in the landmarks' pixels. The square's
    direction is the mean of the eye line and of the line perpendicular to the eyes-to-mouth axis.
    Its half side is the larger of 2.0 eye distances and 1.8 eye-to-mouth distances. Its centre is
    a tenth of the eye-to-mouth vector below the eyes. Raises `Rejection` (`not_finite`) for
    landmarks that are not finite or that span no face.
    """
    points = np.asarray(landmarks, dtype=np.float64)
    first, second = points[_FIRST_EYE].mean(axis=0), points[_SECOND_EYE].mean(axis=0)
    eyes = (first + second) / 2
    across = second - first
    down = points[_MOUTH_CORNERS].mean(axis=0) - eyes

    direction = across - _rotate_90(down)
    length = np.hypot(*direction)
    if not length > 0 or not np.isfinite(length):
        raise Rejection(RejectReason.NOT_FINITE, "the landmarks are not finite or span no face")
    x = direction / length * max(np.hypot(*across) * 2.0, np.hypot(*down) * 1.8)
    y = _rotate_90(x)
    centre = eyes + 0.1 * down
    return np.stack([centre - x - y, centre - x + y, centre + x + y, centre + x - y])


def _rotate_90(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rotate by 90 degrees clockwise: right becomes down."""
    return np.array([-vector[1], vector[0]])


_BORDER = 0.1  # border kept around the square, as a fraction of its side
_PAD = 0.3  # padding if the image ends inside the border, as a fraction of the side


def crop_quad(
    image: Image.Image,  # RGB
    quad: NDArray[Any],  # [4, 2], as `ffhq_quad` orders it
    size: int = 256,
) -> Image.Image:
    """Return the square `quad` of `image`, upright, at `size` × `size`.

    A square of four times `size` or more is first shrunk by a whole factor (Lanczos). Pixels
    outside of the image are mirrored, blurred and faded to the median colour. Follows FFHQ's
    published preparation with transform size equal to output size, as ReStyle's alignment calls
    it. Raises `Rejection` (`no_face`) if the square is outside of the image.
    """
    corners = np.asarray(quad, dtype=np.float64)
    side = float(np.hypot(*(corners[3] - corners[0])))
    shrink = max(math.floor(side / size * 0.5), 1)
    corners, side = corners / shrink, side / shrink

    shrunk = round(image.width / shrink), round(image.height / shrink)
    box = _window(shrunk, corners, _border(side))
    corners = corners - box[:2]
    image, box = _shrunk(image, box, shrink)
    size_inside = box[2] - box[0], box[3] - box[1]
    pads = _pads(size_inside, corners, side)
    if max(pads) > _border(side) - 4:
        left, top, right, bottom = (max(pad, round(side * _PAD)) for pad in pads)
        full = size_inside[0] + left + right, size_inside[1] + top + bottom
        window = _window(full, corners + np.array((left, top)), MARGIN)
        region = padded(image, box, (left, top, right, bottom), side, window)
        corners = corners - (window[0] - left, window[1] - top)
    else:
        region = image.crop(box)
    return region.transform(
        (size, size),
        Image.Transform.QUAD,
        tuple((corners + 0.5).ravel().tolist()),
        Image.Resampling.BILINEAR,
    )


def pad_fraction(quad: NDArray[Any], width: int, height: int) -> float:
    """Return the fraction of the square `quad` [4, 2] outside of a `width` × `height` image."""
    corners = np.asarray(quad, dtype=np.float64)
    steps = (np.arange(64) + 0.5) / 64
    down, right = corners[1] - corners[0], corners[3] - corners[0]
    inside = np.ones((64, 64), bool)
    for axis, length in enumerate((width, height)):
        places = corners[0, axis] + steps[:, None] * down[axis] + steps[None, :] * right[axis]
        inside &= (places >= 0) & (places < length)
    return 1.0 - float(inside.mean())


def _border(side: float) -> int:
    return max(round(side * _BORDER), 3)


def _window(size: tuple[int, int], corners: NDArray[np.float64], border: int) -> Box:
    """Return the box around `corners` and a border, clipped to the image."""
    low, high = np.floor(corners.min(axis=0)), np.ceil(corners.max(axis=0))
    left, top = (max(int(value) - border, 0) for value in low)
    right, bottom = (min(int(value) + border, edge) for value, edge in zip(high, size, strict=True))
    if left >= right or top >= bottom:
        raise Rejection(RejectReason.NO_FACE, "the face lies outside of the image")
    return left, top, right, bottom


def _shrunk(image: Image.Image, box: Box, shrink: int) -> tuple[Image.Image, Box]:
    """Return an image that holds `box` of the shrunk `image`, and the box in that image."""
    if shrink == 1:
        return image, box
    # Resample only the box: its pixels equal those of the whole image resampled.
    left, top, right, bottom = box
    x = image.width / round(image.width / shrink)
    y = image.height / round(image.height / shrink)
    source = (left * x, top * y, min(right * x, image.width), min(bottom * y, image.height))
    size = right - left, bottom - top
    return image.resize(size, Image.Resampling.LANCZOS, box=source), (0, 0, *size)


def _pads(size: tuple[int, int], corners: NDArray[np.float64], side: float) -> list[int]:
    """Return how far the square and its border exceed the edges: left, top, right, bottom."""
    border = _border(side)
    low, high = np.floor(corners.min(axis=0)), np.ceil(corners.max(axis=0))
    over = [*(border - low), *(high - size + border)]
    return [max(int(value), 0) for value in over]
