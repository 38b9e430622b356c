"""Find the largest face of an image and crop it, with dlib and numpy only.

Children of `FacePool` run it as `python -P face_child.py FD`; FD is their end of a socket pair. It
is run by path, since importing it as a module of this package would load torch in every child.
"""

from __future__ import annotations

import sys
from functools import cache
from multiprocessing.connection import Connection
from typing import Any, TypeAlias

import dlib
import numpy as np
from numpy.typing import NDArray

Pixels: TypeAlias = NDArray[np.uint8]
# Plain types only, since a child cannot import this module by name: a landmark file, the side and
# padding of a chip, the image [h, w, 3], its smaller copy, and the scale of that copy.
Request: TypeAlias = tuple[str, tuple[int, float] | None, Pixels, Pixels, float]
Crop: TypeAlias = NDArray[Any]


@cache
def _detector() -> dlib.fhog_object_detector:
    return dlib.get_frontal_face_detector()


@cache
def _predictor(landmarks: str) -> dlib.shape_predictor:
    return dlib.shape_predictor(landmarks)


def find_face(
    landmarks: str,  # dlib's file
    pixels: Pixels,  # [h, w, 3], RGB
    reduced: Pixels,  # copy on which the face is detected
    scale: float,  # side of the copy / side of the image
) -> dlib.full_object_detection | None:
    """Return the largest face's landmarks in pixels of the image; None if HOG finds no face."""
    boxes = _detector()(reduced, 0)
    if not boxes:
        return None
    box = max(boxes, key=lambda rectangle: rectangle.area())
    edges = (box.left(), box.top(), box.right(), box.bottom())
    return _predictor(landmarks)(pixels, dlib.rectangle(*(round(e / scale) for e in edges)))


def crop_face(request: Request) -> Crop | None:
    """Return the chip of the largest face, uint8 [side, side, 3]; None if HOG finds no face.

    Without chip parameters return the landmarks [points, 2] as x, y.
    """
    landmarks, chip, pixels, reduced, scale = request
    face = find_face(landmarks, pixels, reduced, scale)
    if face is None:
        return None
    if chip is None:
        return np.array([(point.x, point.y) for point in face.parts()], dtype=np.float64)
    crop: Crop = dlib.get_face_chip(pixels, face, *chip)
    return crop


def serve(connection: Connection) -> None:
    """Answer requests until the parent's end of the socket is closed."""
    try:
        while True:
            connection.send(crop_face(connection.recv()))
    except (EOFError, OSError):  # OSError: closed within a message
        return


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
