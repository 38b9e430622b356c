"""Result types of alignment: an aligned face with its table fields, and all faces of an image."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.images import Rejection


@dataclass(kw_only=True)
class AlignedFace:
    """Aligned crop of a face, and the alignment columns of its table row.

    Coordinates are pixels of the original after its EXIF orientation and before any turn by
    `turn_deg`: x to the right, y down. `landmarks` and `align_quad` count from the centre of the
    first pixel, `face_box` from its corner. `roll_deg` and `yaw` are measured after the turn.
    Fields of a detected face are None for prealigned images.
    """

    face_index: int  # 0 is the largest face of its image; rejected faces count
    n_faces: int  # faces found in the image, including rejected ones
    width: int  # of the original after its EXIF orientation
    height: int
    # [4] left, top, right, bottom; may exceed the image
    face_box: NDArray[np.float32] | None = None
    landmarks: NDArray[np.float32] | None = None  # [68, 2] x, y, in dlib's (iBUG) order
    # [4, 2] top left, bottom left, bottom right, top right
    align_quad: NDArray[np.float32] | None = None
    face_px: float | None = None  # side of the face box
    roll_deg: float | None = None  # tilt of the eye line; positive is clockwise
    yaw: float | None = None  # [-1, 1]; 0 is frontal, positive turns the nose to the image's right
    sharpness: float  # variance of the Laplacian of the crop in grey levels [0, 255]
    pad_fraction: float  # [0, 1]; fraction of the crop outside of the original
    detector_score: float | None = None  # margin of dlib's HOG detector
    pixels: NDArray[np.uint8]  # [height, width, 3] RGB
    turn_deg: int | None = None  # clockwise turn (0, 90, 180 or 270) that brings the face upright

    def facts(self) -> dict[str, Any]:
        """Return the row's alignment columns: all fields but `pixels` and a `turn_deg` of None."""
        left_out = {"pixels"} | ({"turn_deg"} if self.turn_deg is None else set())
        names = (each.name for each in fields(self))
        return {name: getattr(self, name) for name in names if name not in left_out}


@dataclass
class Alignment:
    """Faces and rejects of one image; each requested face is in one of the two."""

    faces: list[AlignedFace]  # the largest first
    rejects: dict[int, Rejection] = field(default_factory=dict)  # by face_index
    icc_ignored: bool = False  # its colour profile is damaged or does not fit it
