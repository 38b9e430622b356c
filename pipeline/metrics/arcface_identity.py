"""Identity similarity by networks of the ArcFace family, and the part of an image each one uses."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipeline.metrics.arcface import (
    DIMENSIONS,
    FFHQ_SIDE,
    FFHQ_WINDOW,
    WARP,
    ArcFaceIRSE50,
    CurricularFace,
    window_of,
)
from pipeline.metrics.face_child import Crop
from pipeline.metrics.face_pool import FaceCropper
from pipeline.metrics.identity import IdentityNetwork
from pipeline.metrics.pixel import enlarge

# Left eye, right eye, nose, left and right corner of the mouth in a 112 px warp (ArcFace).
TEMPLATE = np.array(
    [
        [38.2946, 51.6963],
        [73.5318, 51.5014],
        [56.0252, 71.7366],
        [41.5493, 92.3655],
        [70.7299, 92.2041],
    ]
)
# Indices of dlib's 68 points whose mean is each of those five.
TEMPLATE_POINTS = (range(36, 42), range(42, 48), (30,), (48,), (54,))


def similarity_to_template(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the similarity transform [2, 3] from pixels of the warp to pixels of the image.

    `points` are [5, 2] in the image. The fit is least squares from template to image, in the
    image's pixels, as in ArcFace's own alignment.
    """
    x, y = TEMPLATE.T
    ones, zeros = np.ones_like(x), np.zeros_like(x)
    rows = np.concatenate([np.stack([x, -y, ones, zeros], 1), np.stack([y, x, zeros, ones], 1)])
    cosine, sine, right, down = np.linalg.lstsq(rows, points.T.ravel(), rcond=None)[0]
    return np.array([[cosine, -sine, right], [sine, cosine, down]])


def warp_faces(
    images: Tensor,  # [n, 3, h, w]
    matrices: Tensor,  # [n, 2, 3], pixels of the warp to pixels of the image
) -> Tensor:
    """Return faces [n, 3, 112, 112], sampled bilinearly; black outside the image."""
    height, width = images.shape[-2:]
    axis = torch.arange(WARP, device=images.device, dtype=images.dtype)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    grid = torch.stack([x, y, torch.ones_like(x)], -1).reshape(1, -1, 3)
    places = grid @ matrices.to(images).transpose(1, 2)
    span = torch.tensor([width - 1, height - 1], device=images.device, dtype=images.dtype)
    places = (places / span * 2 - 1).reshape(-1, WARP, WARP, 2)
    # Shifted by one so that pixels outside are black (-1), not grey.
    return F.grid_sample(images + 1, places, align_corners=True) - 1


def _five_points(landmarks: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.stack([landmarks[list(indices)].mean(axis=0) for indices in TEMPLATE_POINTS])


class CurricularFaceIdentity(IdentityNetwork):
    """CurricularFace on faces that dlib finds, warped to the ArcFace template.

    `processes` children find the faces; with 0 this process does.
    """

    def __init__(self, network: CurricularFace, weights: str, processes: int = 0) -> None:
        self.network = network
        self.cropper = FaceCropper(68, processes=processes)
        self.definition = (
            "cosine of 512-d descriptors, -1..1, higher is more alike; CurricularFace IR-101, "
            f"{weights}, on 112 px warps to the ArcFace template; null where HOG finds no face; "
            "landmarks are dlib's 68 points, the published script takes MTCNN's five"
        )

    def begin(self, images: Tensor) -> Callable[[], Tensor]:
        images = enlarge(images)
        landmarks = self.cropper.begin(images)
        return lambda: self._describe(images, landmarks())

    def _describe(self, images: Tensor, landmarks: list[Crop | None]) -> Tensor:
        indices = [index for index, points in enumerate(landmarks) if points is not None]
        descriptors = images.new_full((len(landmarks), DIMENSIONS), float("nan"))
        if indices:
            points = [_five_points(face) for face in landmarks if face is not None]
            matrices = np.stack([similarity_to_template(p) for p in points])
            warps = warp_faces(images[indices], torch.from_numpy(matrices))
            descriptors[indices] = self.network(warps)
        return descriptors


class ArcFaceIdentity(IdentityNetwork):
    """IR-SE50 on the fixed inner part of an FFHQ crop, as in ReStyle's identity loss."""

    def __init__(self, network: ArcFaceIRSE50, weights: str) -> None:
        self.network = network
        self.definition = (
            "cosine of 512-d descriptors, -1..1, higher is more alike; ArcFace IR-SE50, "
            f"{weights}, on rows 35-223 and columns 32-220 of the 256 px crop, pooled to 112 px; "
            "no face is looked for, so none is missing; encoders are trained with this network"
        )

    def begin(self, images: Tensor) -> Callable[[], Tensor]:
        square = F.interpolate(
            enlarge(images), [FFHQ_SIDE] * 2, mode="bilinear", antialias=True, align_corners=False
        )
        inner = window_of(square, FFHQ_WINDOW)
        descriptors: Tensor = self.network(F.adaptive_avg_pool2d(inner, WARP))
        return lambda: descriptors
