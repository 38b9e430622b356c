"""Where the face is in an aligned crop: dlib's HOG detector and landmarks, made once a process."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from pipeline.dlib_models import dlib_model
from pipeline.metrics.face_child import Cut, Pixels, cut_face
from pipeline.metrics.face_pool import FacePool
from pipeline.models.pixels import to_pixels

# Faces are looked for on a copy whose longer side is this: 4 ms instead of 8 at 256 px, with the
# same faces found. HOG's smallest face is 80 px, an FFHQ crop's face is 0.5 to 0.7 of its side.
DETECTION_SIDE = 192


def landmark_file(points: int) -> str:
    """dlib's file for 5 points (eye corners, nose) or 68."""
    return str(dlib_model(f"shape_predictor_{points}_face_landmarks.dat"))


def views(images: Tensor) -> list[tuple[Pixels, Pixels, float]]:
    """What `find_face` looks at: each image [3, h, w] in [-1, 1], a smaller copy, and its factor.

    Made for all images at once, where they are.
    """
    height, width = images.shape[-2:]
    factor = min(1.0, DETECTION_SIDE / max(height, width))
    size = [round(height * factor), round(width * factor)]
    small = F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
    pairs = zip(to_pixels(images), to_pixels(small), strict=True)
    return [(pixels, reduced, factor) for pixels, reduced in pairs]


class FaceCutter:
    """Cuts the largest face out of each image, in this process or in `processes` children.

    `chip` is the side and the padding of what is cut; without it the landmarks are given.
    """

    def __init__(
        self, points: int, chip: tuple[int, float] | None = None, processes: int = 0
    ) -> None:
        self.landmarks, self.chip = landmark_file(points), chip
        self.pool = FacePool(processes) if processes else None

    def begin(self, images: Tensor) -> Callable[[], list[Cut | None]]:
        """Begin with `images` [n, 3, h, w]; calling what is given waits for the n cuts.

        Without children all is done here, before anything is given.
        """
        orders = [(self.landmarks, self.chip, *view) for view in views(images)]
        if self.pool is None:
            cuts = [cut_face(order) for order in orders]
            return lambda: cuts
        answers = [self.pool.submit(order) for order in orders]
        return lambda: [answer.result() for answer in answers]
