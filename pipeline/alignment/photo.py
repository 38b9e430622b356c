"""One view of an image, as it is or turned, and what is cut out of it."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.alignment.check import score_in_crop
from pipeline.alignment.crop import crop_quad, ffhq_quad
from pipeline.alignment.detection import Detection, find_landmarks
from pipeline.alignment.rotation import turned


@dataclass(frozen=True)
class Cut:
    """A face cut out of a view: what the crop was made by, and the crop."""

    landmarks: NDArray[np.float32]  # [68, 2] pixels of the view
    quad: NDArray[np.float64]  # [4, 2]
    crop: Image.Image


class Photo:
    """An image turned clockwise by `turn_deg`; a face is cut out of it once."""

    def __init__(self, image: Image.Image, turn_deg: int, crop_size: int) -> None:
        self.image = turned(image, turn_deg)
        self.turn_deg = turn_deg
        self._crop_size = crop_size
        self._cuts: dict[Detection, Cut] = {}
        self._scores: dict[Detection, float] = {}

    @functools.cached_property
    def pixels(self) -> NDArray[np.uint8]:
        """[height, width, 3], shared by all faces: the predictor reads it in place."""
        return np.asarray(self.image)

    def cut(self, face: Detection) -> Cut:
        """The aligned crop of `face`, a square of `crop_size`; raises `Rejection`."""
        if face not in self._cuts:
            landmarks = find_landmarks(self.pixels, face)
            quad = ffhq_quad(landmarks)
            crop = crop_quad(self.image, quad, self._crop_size)
            self._cuts[face] = Cut(landmarks, quad, crop)
        return self._cuts[face]

    def score_in_crop(self, face: Detection) -> float:
        """`score_in_crop` of the crop of `face`; raises `Rejection` where it cannot be cut."""
        if face not in self._scores:
            self._scores[face] = score_in_crop(self.cut(face).crop)
        return self._scores[face]
