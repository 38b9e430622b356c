"""Bytes of an image to its aligned faces."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.alignment.crop import crop_quad, pad_fraction
from pipeline.alignment.detection import (
    Detection,
    find_all_faces,
    find_faces,
    find_landmarks,
    warm_up,
)
from pipeline.alignment.face import AlignedFace, Alignment
from pipeline.alignment.fit import fitted
from pipeline.alignment.quad import ffhq_quad
from pipeline.alignment.quality import roll_deg, sharpness, yaw
from pipeline.alignment.settings import FFHQ_SIZE, AlignmentSettings
from pipeline.images import ICC_IGNORED, Rejection, RejectReason, decode


class Aligner:
    """Decodes, detects and crops; dlib's models are loaded once a process."""

    def __init__(self, settings: AlignmentSettings | None = None) -> None:
        self.settings = settings or AlignmentSettings()
        if not self.settings.prealigned:
            warm_up()

    def align(self, content: bytes) -> Alignment:
        """The faces of one encoded image, never none, and the rejects among those wanted.

        Raises `Rejection` where no face is left: what `decode` gives, `no_face`, `face_too_small`
        or `not_finite`, each of the largest face.
        """
        image = decode(content, self.settings.limits)
        if self.settings.prealigned:
            return Alignment([self._resized(image)], icc_ignored=ICC_IGNORED in image.info)
        found = self._find(image)
        alignment = Alignment([], icc_ignored=ICC_IGNORED in image.info)
        pixels = np.asarray(image)  # shared by all faces: the predictor reads it in place
        for index, face in enumerate(found[:1] if self.settings.faces == "largest" else found):
            try:
                self._check_size(face)
                landmarks = find_landmarks(pixels, face)
                alignment.faces.append(self._aligned(image, landmarks, face, index, len(found)))
            except Rejection as rejection:
                alignment.rejects[index] = rejection
        if not alignment.faces:
            raise alignment.rejects[0]
        return alignment

    def _find(self, image: Image.Image) -> list[Detection]:
        # The last try is for small faces in large photos: of 10 faces of 100 pixels in photos of
        # 2048 the second try finds 2, the last all. Only images about to be rejected pay for it.
        side, score = self.settings.detector_side, self.settings.min_score
        if self.settings.faces == "all":
            # A first try that finds a large face says nothing of the small ones.
            found = find_all_faces(image, self.settings.min_face_px, side=2 * side, min_score=score)
            tried = f"faces of {self.settings.min_face_px:g} px and more were looked for"
        else:
            tries = [(side, 0), (side, 1), (2 * side, 1)]
            found = find_faces(image, tries, min_score=score)
            tried = ", ".join(f"{side} px upsample {upsample}" for side, upsample in tries)
            tried = f"at most {tried} tried"
        if not found:
            raise Rejection(
                RejectReason.NO_FACE,
                f"no face found in {image.width}×{image.height} pixels ({tried})",
            )
        return found

    def _check_size(self, face: Detection) -> None:
        if face.side < self.settings.min_face_px:
            raise Rejection(
                RejectReason.FACE_TOO_SMALL,
                f"the face is {face.side:.0f} pixels wide, "
                f"the limit is {self.settings.min_face_px:g}",
            )

    def _aligned(
        self,
        image: Image.Image,
        landmarks: NDArray[np.float32],  # [68, 2]
        face: Detection,
        index: int,
        n_faces: int,
    ) -> AlignedFace:
        quad = ffhq_quad(landmarks)
        crop = crop_quad(image, quad, max(FFHQ_SIZE, *self.settings.output_size))
        return AlignedFace(
            face_index=index,
            n_faces=n_faces,
            width=image.width,
            height=image.height,
            face_box=np.array([face.left, face.top, face.right, face.bottom], np.float32),
            landmarks=landmarks,
            align_quad=quad.astype(np.float32),
            face_px=face.side,
            roll_deg=roll_deg(landmarks),
            yaw=yaw(landmarks),
            sharpness=sharpness(crop),
            pad_fraction=pad_fraction(quad, image.width, image.height),
            detector_score=face.score,
            pixels=np.asarray(self._at_output_size(crop)),
        )

    def _resized(self, image: Image.Image) -> AlignedFace:
        resized, padding = fitted(image, self.settings.output_size, self.settings.fit)
        return AlignedFace(
            face_index=0,
            n_faces=1,
            width=image.width,
            height=image.height,
            face_box=None,
            landmarks=None,
            align_quad=None,
            face_px=None,
            roll_deg=None,
            yaw=None,
            sharpness=sharpness(resized),
            pad_fraction=padding,
            detector_score=None,
            pixels=np.asarray(resized),
        )

    def _at_output_size(self, image: Image.Image) -> Image.Image:
        height, width = self.settings.output_size
        if image.size == (width, height):
            return image
        return image.resize((width, height), Image.Resampling.BILINEAR)
