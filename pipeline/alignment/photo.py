"""Views of a photo, upright or turned: their face crops, and how clearly these show a face.

Coordinates of a turned view are mapped back to the stored photo by `points_before` and
`box_before`. `score_in_crop` runs the detector again on an aligned crop. The landmarks of a real
face put it in the middle of its crop, where the detector finds it with a score of 0.3 or more (412
of 412 upright photos). In photos that are upside down or on their side, most detections are wrong:
their crops show the face turned like the photo, and score lower, or higher when turned over.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.alignment.crop import crop_quad, ffhq_quad
from pipeline.alignment.detection import Detection, find_faces, find_landmarks
from pipeline.alignment.settings import FFHQ_SIZE

TURNS = (90, 180, 270)  # degrees clockwise that bring a photo upright
_TRANSPOSES = {  # Pillow names them by the counter-clockwise turn
    90: Image.Transpose.ROTATE_270,
    180: Image.Transpose.ROTATE_180,
    270: Image.Transpose.ROTATE_90,
}

PLAUSIBLE = 0.25  # smallest score in the crop that counts; 412 upright photos: 0.32 and above
CLEAR = 0.6  # above it no other turn is searched: 193 wrongly turned faces all score less
CERTAIN = 1.25  # above it the crop is not turned over: no wrongly turned face scores 1 or more

# Where FFHQ's crop shows an upright face, in fractions of the crop's side.
_MAX_OFF_CENTRE = 0.17
_FACE_SIDES = (0.23, 0.75)


def turned(image: Image.Image, degrees: int) -> Image.Image:
    """Return `image` turned clockwise by 0, 90, 180 or 270 degrees, without resampling."""
    return image.transpose(_TRANSPOSES[degrees]) if degrees else image


def points_before(
    points: NDArray[Any],  # [n, 2] x, y of pixel centres in the turned image
    degrees: int,
    size: tuple[int, int],  # (width, height) before the turn
) -> NDArray[Any]:
    """Map points back to the image before its clockwise turn by `degrees`.

    Pixel centres are whole numbers.
    """
    right, bottom = size[0] - 1, size[1] - 1
    x, y = points[..., 0], points[..., 1]
    before = {0: (x, y), 90: (y, bottom - x), 180: (right - x, bottom - y), 270: (right - y, x)}
    return np.stack(before[degrees], axis=-1)


def box_before(
    box: NDArray[Any],  # [4] left, top, right, bottom: edges of pixels in the turned image
    degrees: int,
    size: tuple[int, int],  # (width, height) before the turn
) -> NDArray[Any]:
    """Map a box back to the image before its clockwise turn by `degrees`."""
    # Edges are half a pixel away from the centres.
    corners = points_before(box.reshape(2, 2) - 0.5, degrees, size) + 0.5
    return np.concatenate([corners.min(axis=0), corners.max(axis=0)])


def score_in_crop(crop: Image.Image) -> float:
    """Return the detector's score of the face in the middle of its own aligned crop.

    0 if no such face is found, or if the crop turned by 180 degrees scores higher.
    """
    if crop.width != FFHQ_SIZE:
        crop = crop.resize((FFHQ_SIZE, FFHQ_SIZE), Image.Resampling.BILINEAR)
    upright = _central_score(crop, PLAUSIBLE)
    if not upright or upright >= CERTAIN:
        return upright
    turned_over = _central_score(turned(crop, 180), upright)
    return 0.0 if turned_over > upright else upright


def _central_score(crop: Image.Image, min_score: float) -> float:
    scores = [0.0]
    for face in find_faces(crop, min_score=min_score):
        centre = (face.left + face.right) / 2, (face.top + face.bottom) / 2
        off_centre = max(abs(place / FFHQ_SIZE - 0.5) for place in centre)
        low, high = _FACE_SIDES
        if off_centre < _MAX_OFF_CENTRE and low < face.side / FFHQ_SIZE < high:
            scores.append(face.score)
    return max(scores)


@dataclass(frozen=True)
class FaceCrop:
    """Aligned crop of a face, with the landmarks and the quad that define it."""

    landmarks: NDArray[np.float32]  # [68, 2] pixels of the view
    quad: NDArray[np.float64]  # [4, 2]
    image: Image.Image


class Photo:
    """View of an image, turned clockwise by `turn_deg`; crops and their scores are cached."""

    def __init__(self, image: Image.Image, turn_deg: int, crop_size: int) -> None:
        self.image = turned(image, turn_deg)
        self.turn_deg = turn_deg
        self._crop_size = crop_size
        self._crops: dict[Detection, FaceCrop] = {}
        self._scores: dict[Detection, float] = {}

    @functools.cached_property
    def pixels(self) -> NDArray[np.uint8]:
        """Pixels [height, width, 3], shared by all faces: the predictor does not copy them."""
        return np.asarray(self.image)

    def crop(self, face: Detection) -> FaceCrop:
        """Return the aligned crop of `face`, `crop_size` pixels a side; raises `Rejection`."""
        if face not in self._crops:
            landmarks = find_landmarks(self.pixels, face)
            quad = ffhq_quad(landmarks)
            crop = crop_quad(self.image, quad, self._crop_size)
            self._crops[face] = FaceCrop(landmarks, quad, crop)
        return self._crops[face]

    def score_in_crop(self, face: Detection) -> float:
        """Return `score_in_crop` of the crop of `face`; raises `Rejection` if it has no crop."""
        if face not in self._scores:
            self._scores[face] = score_in_crop(self.crop(face).image)
        return self._scores[face]
