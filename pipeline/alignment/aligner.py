"""Decode an image and align its faces."""

from __future__ import annotations

import numpy as np
from PIL import Image

from pipeline.alignment.crop import pad_fraction
from pipeline.alignment.detection import Detection, warm_up
from pipeline.alignment.face import AlignedFace, Alignment
from pipeline.alignment.fit import fit_to_size
from pipeline.alignment.photo import Photo, box_before, points_before
from pipeline.alignment.quality import roll_deg, sharpness, yaw
from pipeline.alignment.search import Search
from pipeline.alignment.settings import AlignmentSettings
from pipeline.images import ICC_IGNORED, Rejection, RejectReason, decode


class Aligner:
    """Decodes images, detects faces and crops them; dlib's models are loaded once per process."""

    def __init__(self, settings: AlignmentSettings | None = None) -> None:
        self.settings = settings or AlignmentSettings()
        if not self.settings.prealigned:
            warm_up()

    def align(self, content: bytes) -> Alignment:
        """Return the aligned faces of one encoded image, at least one, and its rejected faces.

        Raises `Rejection` if no face is left: a reason of `decode`, `no_face`, or the reason of
        the largest face (`face_too_small`, `not_finite`).
        """
        image = decode(content, self.settings.limits)
        if self.settings.prealigned:
            return Alignment(
                [self._resize_prealigned(image)], icc_ignored=ICC_IGNORED in image.info
            )
        photo, detections = Search(image, self.settings).find()
        alignment = Alignment([], icc_ignored=ICC_IGNORED in image.info)
        requested = detections[:1] if self.settings.faces == "largest" else detections
        for index, face in enumerate(requested):
            try:
                self._check_size(face)
                aligned = self._align_face(image, photo, face, index, len(detections))
                alignment.faces.append(aligned)
            except Rejection as rejection:
                alignment.rejects[index] = rejection
        if not alignment.faces:
            raise alignment.rejects[0]
        return alignment

    def _check_size(self, face: Detection) -> None:
        if face.side < self.settings.min_face_px:
            raise Rejection(
                RejectReason.FACE_TOO_SMALL,
                f"the face is {face.side:.0f} pixels wide, "
                f"the limit is {self.settings.min_face_px:g}",
            )

    def _align_face(
        self, image: Image.Image, photo: Photo, face: Detection, index: int, n_faces: int
    ) -> AlignedFace:
        crop, turn, size = photo.crop(face), photo.turn_deg, image.size
        box = np.array([face.left, face.top, face.right, face.bottom])
        return AlignedFace(
            face_index=index,
            n_faces=n_faces,
            width=image.width,
            height=image.height,
            face_box=box_before(box, turn, size).astype(np.float32),
            landmarks=points_before(crop.landmarks, turn, size).astype(np.float32),
            align_quad=points_before(crop.quad, turn, size).astype(np.float32),
            face_px=face.side,
            roll_deg=roll_deg(crop.landmarks),
            yaw=yaw(crop.landmarks),
            sharpness=sharpness(crop.image),
            pad_fraction=pad_fraction(crop.quad, photo.image.width, photo.image.height),
            detector_score=face.score,
            pixels=np.asarray(fit_to_size(crop.image, self.settings.output_size, "stretch")[0]),
            turn_deg=turn if self.settings.records_turns else None,
        )

    def _resize_prealigned(self, image: Image.Image) -> AlignedFace:
        resized, padding = fit_to_size(image, self.settings.output_size, self.settings.fit)
        return AlignedFace(
            face_index=0,
            n_faces=1,
            width=image.width,
            height=image.height,
            sharpness=sharpness(resized),
            pad_fraction=padding,
            pixels=np.asarray(resized),
        )
