"""Identity by the networks of the ArcFace family: where each looks for the face, and its cosine."""

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
from pipeline.metrics.face_child import Cut
from pipeline.metrics.face_cutter import FaceCutter
from pipeline.metrics.face_pool import face_processes
from pipeline.metrics.pixel import enlarged

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
# Which of dlib's 68 points are averaged to each of those five.
TEMPLATE_POINTS = (range(36, 42), range(42, 48), (30,), (48,), (54,))


def similarity_to_template(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """The rotation, scale and shift [2, 3] that take a warp's pixels to those of the image.

    `points` [5, 2] in the image. Least squares in the image's pixels, template to image, which is
    the direction that ArcFace's own alignment fits.
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
    """Faces [n, 3, 112, 112], read bilinearly; black outside the image."""
    height, width = images.shape[-2:]
    axis = torch.arange(WARP, device=images.device, dtype=images.dtype)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    grid = torch.stack([x, y, torch.ones_like(x)], -1).reshape(1, -1, 3)
    places = grid @ matrices.to(images).transpose(1, 2)
    span = torch.tensor([width - 1, height - 1], device=images.device, dtype=images.dtype)
    places = (places / span * 2 - 1).reshape(-1, WARP, WARP, 2)
    # Shifted by one so that what lies outside is black, -1, not grey.
    return F.grid_sample(images + 1, places, align_corners=True) - 1


def _five_points(places: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.stack([places[list(chosen)].mean(axis=0) for chosen in TEMPLATE_POINTS])


class CurricularFaceIdentity:
    """CurricularFace on faces that dlib finds and the ArcFace template puts in place.

    `processes` children find the faces; 0 does it in this process.
    """

    def __init__(self, network: CurricularFace, weights: str, processes: int = 0) -> None:
        self.network = network
        self.cutter = FaceCutter(68, processes=processes)
        self.definition = (
            "cosine of 512-d descriptors, -1..1, higher is more alike; CurricularFace IR-101, "
            f"{weights}, on 112 px warps to the ArcFace template; null where HOG finds no face; "
            "landmarks are dlib's 68 points, the published script takes MTCNN's five"
        )

    def embed(self, images: Tensor) -> Tensor:
        """See `pipeline.metrics.identity.IdentityNetwork.embed`."""
        return self.begin(images)()

    def begin(self, images: Tensor) -> Callable[[], Tensor]:
        """See `pipeline.metrics.identity.IdentityNetwork.begin`."""
        images = enlarged(images)
        landmarks = self.cutter.begin(images)
        return lambda: self._describe(images, landmarks())

    def _describe(self, images: Tensor, landmarks: list[Cut | None]) -> Tensor:
        seen = [index for index, places in enumerate(landmarks) if places is not None]
        descriptors = images.new_full((len(landmarks), DIMENSIONS), float("nan"))
        if seen:
            points = [_five_points(places) for places in landmarks if places is not None]
            matrices = np.stack([similarity_to_template(p) for p in points])
            warps = warp_faces(images[seen], torch.from_numpy(matrices))
            descriptors[seen] = self.network(warps)
        return descriptors


class ArcFaceIdentity:
    """IR-SE50 on the fixed inner part of an FFHQ crop, as ReStyle's identity loss cuts it."""

    def __init__(self, network: ArcFaceIRSE50, weights: str) -> None:
        self.network = network
        self.definition = (
            "cosine of 512-d descriptors, -1..1, higher is more alike; ArcFace IR-SE50, "
            f"{weights}, on rows 35-223 and columns 32-220 of the 256 px crop, pooled to 112 px; "
            "no face is looked for, so none is missing; encoders are trained with this network"
        )

    def embed(self, images: Tensor) -> Tensor:
        """See `pipeline.metrics.identity.IdentityNetwork.embed`."""
        square = F.interpolate(
            enlarged(images), [FFHQ_SIDE] * 2, mode="bilinear", antialias=True, align_corners=False
        )
        inner = window_of(square, FFHQ_WINDOW)
        descriptors: Tensor = self.network(F.adaptive_avg_pool2d(inner, WARP))
        return descriptors

    def begin(self, images: Tensor) -> Callable[[], Tensor]:
        """See `pipeline.metrics.identity.IdentityNetwork.begin`."""
        descriptors = self.embed(images)
        return lambda: descriptors


def identity_of(
    network: ArcFaceIRSE50, weights: str, device: str = "cpu"
) -> ArcFaceIdentity | CurricularFaceIdentity:
    """What compares faces by `network`, which is on `device`; `weights` names its file."""
    if isinstance(network, CurricularFace):
        return CurricularFaceIdentity(network, weights, face_processes(device))
    return ArcFaceIdentity(network, weights)
