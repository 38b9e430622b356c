"""Cut a turned square out of an image the way FFHQ was made: shrink, crop, pad, warp."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from pipeline.images import Rejection, RejectReason

_BORDER = 0.1  # of the square's side, kept around it
_PAD = 0.3  # of the side, where the image ends inside the border
_BLUR = 0.02  # of the side: sigma of the blur that fades mirrored content


def crop_quad(
    image: Image.Image,  # RGB
    quad: NDArray[Any],  # [4, 2], as `ffhq_quad` orders it
    size: int = 256,
) -> Image.Image:
    """The square `quad` of `image`, turned upright, at `size` × `size`.

    A square of more than twice `size` is first shrunk by a whole factor (Lanczos). What lies
    outside the image is mirrored, blurred and faded to the median colour. Follows FFHQ's published
    preparation with transform size equal to output size, as ReStyle's alignment calls it.
    Rejects a square that lies outside of the image (`no_face`).
    """
    corners = np.asarray(quad, dtype=np.float64)
    side = float(np.hypot(*(corners[3] - corners[0])))
    shrink = max(math.floor(side / size * 0.5), 1)
    corners, side = corners / shrink, side / shrink

    window = _window(image, corners, side, shrink)
    region = _shrunk_region(image, window, shrink)
    corners = corners - window[:2]
    pads = _pads(region, corners, side)
    if max(pads) > _border(side) - 4:
        pads = [max(pad, round(side * _PAD)) for pad in pads]
        region = _padded(region, pads, side)
        corners = corners + pads[:2]
    return region.transform(
        (size, size),
        Image.Transform.QUAD,
        tuple((corners + 0.5).ravel().tolist()),
        Image.Resampling.BILINEAR,
    )


def pad_fraction(quad: NDArray[Any], width: int, height: int) -> float:
    """The share of the square `quad` [4, 2] that lies outside of a `width` × `height` image."""
    corners = np.asarray(quad, dtype=np.float64)
    steps = (np.arange(64) + 0.5) / 64
    down, right = corners[1] - corners[0], corners[3] - corners[0]
    points = corners[0] + steps[:, None, None] * down + steps[None, :, None] * right
    inside = (points >= 0).all(axis=-1) & (points < (width, height)).all(axis=-1)
    return 1.0 - float(inside.mean())


def _border(side: float) -> int:
    return max(round(side * _BORDER), 3)


def _window(
    image: Image.Image, corners: NDArray[np.float64], side: float, shrink: int
) -> tuple[int, int, int, int]:
    """What is cut before warping, in pixels of the shrunk image: left, top, right, bottom."""
    border = _border(side)
    low, high = np.floor(corners.min(axis=0)), np.ceil(corners.max(axis=0))
    left, top = (max(int(value) - border, 0) for value in low)
    right = min(int(high[0]) + border, round(image.width / shrink))
    bottom = min(int(high[1]) + border, round(image.height / shrink))
    if left >= right or top >= bottom:
        raise Rejection(RejectReason.NO_FACE, "the face lies outside of the image")
    return left, top, right, bottom


def _shrunk_region(
    image: Image.Image, window: tuple[int, int, int, int], shrink: int
) -> Image.Image:
    if shrink == 1:
        return image.crop(window)
    # Only the window is resampled; its pixels are those of the whole image resampled.
    left, top, right, bottom = window
    x = image.width / round(image.width / shrink)
    y = image.height / round(image.height / shrink)
    box = (left * x, top * y, min(right * x, image.width), min(bottom * y, image.height))
    return image.resize((right - left, bottom - top), Image.Resampling.LANCZOS, box=box)


def _pads(region: Image.Image, corners: NDArray[np.float64], side: float) -> list[int]:
    """How far the square and its border reach over each edge: left, top, right, bottom."""
    border = _border(side)
    low, high = np.floor(corners.min(axis=0)), np.ceil(corners.max(axis=0))
    over = [*(border - low), *(high - region.size + border)]
    return [max(int(value), 0) for value in over]


def _padded(region: Image.Image, pads: list[int], side: float) -> Image.Image:
    left, top, right, bottom = pads
    sharp = np.pad(np.asarray(region), ((top, bottom), (left, right), (0, 0)), mode="reflect")
    height, width, _ = sharp.shape
    x, y = np.arange(width), np.arange(height)[:, None]
    depth = np.maximum(  # 0 at the image's edge, 1 at the padding's outer edge, below 0 inside
        1 - np.minimum(x / left, (width - 1 - x) / right),
        1 - np.minimum(y / top, (height - 1 - y) / bottom),
    ).astype(np.float32)[..., None]
    # Pillow's blur stands in for an exact Gaussian: constant time a pixel, and a crop with a
    # quarter of padding differs by 0.2 grey levels on average.
    blurred = np.asarray(Image.fromarray(sharp).filter(ImageFilter.GaussianBlur(side * _BLUR)))
    faded = sharp.astype(np.float32)
    faded += (blurred - faded) * np.clip(depth * 3 + 1, 0, 1)
    faded += (_median(faded) - faded) * np.clip(depth, 0, 1)
    return Image.fromarray(np.clip(np.rint(faded), 0, 255).astype(np.uint8))


def _median(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each channel's median, [3]."""
    return np.median(pixels, axis=(0, 1)).astype(np.float32)
