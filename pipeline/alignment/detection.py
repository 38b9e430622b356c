"""Find faces and their 68 landmarks with dlib's HOG detector and shape predictor."""

from __future__ import annotations

import functools
import math
import threading
from dataclasses import dataclass
from typing import Any

import dlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.dlib_models import dlib_model

LANDMARK_MODEL = "shape_predictor_68_face_landmarks.dat"
_WINDOW = 80  # pixels: side of the detector's window; all of twelve faces of this side were found
# The detector keeps the pyramid of the image that it searches: two threads at once end the process.
_SEARCH = threading.Lock()
_MAX_PIXELS = 32_000_000  # of a copy searched for all faces: 2.8 s of one core and 0.6 GB


@dataclass(frozen=True)
class Detection:
    """Box of a face in pixels of the full image; right and bottom are outer edges of pixels."""

    left: float
    top: float
    right: float
    bottom: float
    score: float

    @property
    def side(self) -> float:
        """Mean of width and height; dlib's boxes are square up to rounding."""
        return (self.right - self.left + self.bottom - self.top) / 2


@functools.cache
def _detector() -> Any:
    # Takes 0.5 s to build: once per process, not once per image.
    return dlib.get_frontal_face_detector()


@functools.cache
def _frontal_detector() -> Any:
    """Return the detector with the first of its five filters, that of upright frontal faces.

    In dlib's format each number is a byte, whose low bits count the bytes that follow, and these.
    There are 18 settings, the number of filters, and then as many numbers for each filter.
    """
    (state,) = _detector().__getstate__()
    numbers, place = [], 0
    while place < len(state):
        begin, place = place, place + 1 + (state[place] & 0x0F)
        numbers.append(state[begin:place])
    per_filter = (len(numbers) - 19) // _detector().num_detectors
    detector = dlib.fhog_object_detector.__new__(dlib.fhog_object_detector)
    detector.__setstate__((b"".join([*numbers[:18], b"\1\1", *numbers[19 : 19 + per_filter]]),))
    return detector


@functools.cache
def _predictor() -> Any:
    return dlib.shape_predictor(str(dlib_model(LANDMARK_MODEL)))


def warm_up() -> None:
    """Load the models, so that the first image is not slower than others."""
    _frontal_detector()
    _predictor()


def find_faces(
    image: Image.Image,  # RGB, any size
    scale: float = 1.0,  # of the copy that is searched
    upsample: int = 0,  # how often the copy is doubled
    *,
    min_score: float = 0.0,
    frontal: bool = False,  # on a grey copy, by the frontal filter alone
) -> list[Detection]:
    """Return the faces of a copy of `image`, sorted by size (largest first), left edge and top.

    dlib finds faces of about 70 pixels and more in the searched copy. The frontal filter on a grey
    copy takes less than half the time of all filters on RGB; it finds few faces of turned photos.
    """
    copy = _copy(image.convert("L") if frontal else image, scale)
    detector = _frontal_detector() if frontal else _detector()
    with _SEARCH:
        boxes, scores, _ = detector.run(np.asarray(copy), upsample, min_score)
    x_scale, y_scale = image.width / copy.width, image.height / copy.height
    pairs = zip(boxes, scores, strict=True)
    return sorted((_scaled(box, score, x_scale, y_scale) for box, score in pairs), key=_by_size)


def all_faces_scale(
    size: tuple[int, int],  # (width, height) of the image
    smallest: float,  # side of a face's box, in pixels
    side: int = 1024,
) -> float:
    """Return the scale of a copy that shows every face of side `smallest` or more to the detector.

    Such a face fills the detector's window; the detector's pyramid finds larger ones. The copy is
    at least as large as one of `side` pixels doubled once, and has at most 32 million pixels.
    Because of that limit faces of 32 pixels are missed in images of more than 5 million pixels, and
    faces under 49 pixels in images of 12 million. Smaller faces than `smallest` may be found too.
    """
    scale = max(_WINDOW / smallest, 2 * min(side / max(size), 1))
    return min(scale, math.sqrt(_MAX_PIXELS / (size[0] * size[1])))


def _copy(image: Image.Image, scale: float) -> Image.Image:
    if scale == 1:
        return image
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    # Reduces by a whole factor first: 2 ms; an antialiased resize from 1024 pixels takes 9.
    return image.resize(size, Image.Resampling.BILINEAR, reducing_gap=1.0)


def _scaled(box: Any, score: float, x_scale: float, y_scale: float) -> Detection:
    return Detection(
        left=box.left() * x_scale,
        top=box.top() * y_scale,
        right=(box.right() + 1) * x_scale,  # dlib's edges are the last pixels inside
        bottom=(box.bottom() + 1) * y_scale,
        score=float(score),
    )


def _by_size(face: Detection) -> tuple[float, float, float]:
    area = (face.right - face.left) * (face.bottom - face.top)
    return -area, face.left, face.top


def find_landmarks(
    pixels: NDArray[np.uint8],  # [height, width, 3] RGB, at full resolution
    face: Detection,
) -> NDArray[np.float32]:
    """Return the 68 landmarks of `face`, [68, 2] as x, y in pixels, in dlib's (iBUG) order."""
    box = dlib.rectangle(
        round(face.left), round(face.top), round(face.right) - 1, round(face.bottom) - 1
    )
    shape = _predictor()(pixels, box)
    return np.array([(point.x, point.y) for point in shape.parts()], dtype=np.float32)
