"""One aligned face and what is known of it; what an image gave."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.images import Rejection


@dataclass
class AlignedFace:
    """A crop, and the alignment fields of its table row (DESIGN, section 4).

    Coordinates are pixels of the original as its EXIF orientation shows it, x to the right, y down,
    whatever `turn_deg` is: they can be drawn on it. `landmarks` and `align_quad` count from the
    centre of its first pixel, the edges of `face_box` from that pixel's corner. `roll_deg` and
    `yaw` are of the photo after the turn. Fields that only a detected face has are None where
    images come prealigned.
    """

    face_index: int  # 0 is the largest face of its image; rejected ones are counted too
    n_faces: int  # faces found in the image, kept or not
    width: int  # of the original as its EXIF orientation shows it
    height: int
    face_box: NDArray[np.float32] | None  # [4] left, top, right, bottom; may leave the image
    landmarks: NDArray[np.float32] | None  # [68, 2] x, y, in dlib's (iBUG) order
    align_quad: NDArray[np.float32] | None  # [4, 2] top left, bottom left, bottom right, top right
    face_px: float | None  # side of the face box
    roll_deg: float | None  # tilt of the eye line; positive is clockwise as seen
    yaw: float | None  # [-1, 1]; 0 is frontal, positive has the nose towards the image's right
    sharpness: float  # variance of the Laplacian of the crop in grey levels [0, 255]
    pad_fraction: float  # [0, 1]; share of the crop that lies outside the original
    detector_score: float | None  # margin of dlib's HOG detector
    pixels: NDArray[np.uint8]  # [height, width, 3] RGB
    turn_deg: int | None = None  # 0, 90, 180 or 270 clockwise bring the face upright

    def facts(self) -> dict[str, Any]:
        """All but the pixels, by the names of the table's columns; a turn where one is known."""
        left_out = {"pixels"} | ({"turn_deg"} if self.turn_deg is None else set())
        names = (one.name for one in fields(self) if one.name not in left_out)
        return {name: getattr(self, name) for name in names}


@dataclass
class Alignment:
    """What one image gave: each of the faces that were wanted is in one of the two."""

    faces: list[AlignedFace]  # the largest first
    rejects: dict[int, Rejection] = field(default_factory=dict)  # by face_index
    icc_ignored: bool = False  # its colour profile is damaged or not for such an image
