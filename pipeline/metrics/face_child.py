"""Finds the largest face in an image and cuts it out: dlib and numpy alone.

It is also what a child of `FacePool` runs, as `python -P face_child.py FD`, FD being its end of a
socket pair. By its path: as a module of this package it would bring torch into every child.
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
# Plain types only, since a child does not know this module by its name: a landmark file, the side
# and padding of a chip, the image [h, w, 3], its smaller copy, and how much smaller that is.
Order: TypeAlias = tuple[str, tuple[int, float] | None, Pixels, Pixels, float]
Cut: TypeAlias = NDArray[Any]


@cache
def _detector() -> dlib.fhog_object_detector:
    return dlib.get_frontal_face_detector()


@cache
def _predictor(landmarks: str) -> dlib.shape_predictor:
    return dlib.shape_predictor(landmarks)


def find_face(
    landmarks: str,  # dlib's file
    pixels: Pixels,  # [h, w, 3], RGB
    reduced: Pixels,  # the copy on which the face is looked for
    factor: float,  # side of the copy / side of the image
) -> dlib.full_object_detection | None:
    """The largest face's landmarks in pixels of the image, or None where HOG finds no face."""
    boxes = _detector()(reduced, 0)
    if not boxes:
        return None
    box = max(boxes, key=lambda rectangle: rectangle.area())
    edges = (box.left(), box.top(), box.right(), box.bottom())
    return _predictor(landmarks)(pixels, dlib.rectangle(*(round(e / factor) for e in edges)))


def cut_face(order: Order) -> Cut | None:
    """A chip uint8 [side, side, 3] of the largest face; None where HOG finds no face.

    Where no chip is asked for, its landmarks [points, 2] as x, y.
    """
    landmarks, chip, pixels, reduced, factor = order
    face = find_face(landmarks, pixels, reduced, factor)
    if face is None:
        return None
    if chip is None:
        return np.array([(point.x, point.y) for point in face.parts()], dtype=np.float64)
    cut: Cut = dlib.get_face_chip(pixels, face, *chip)
    return cut


def serve(connection: Connection) -> None:
    """Answer orders until the other end is gone, however it went."""
    try:
        while True:
            connection.send(cut_face(connection.recv()))
    except (EOFError, OSError):  # OSError: in the middle of an order
        return


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
