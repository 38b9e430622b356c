"""Face recognition networks of the ArcFace family, as the ReStyle scripts use them.

IR-SE50 (ArcFace, Deng et al. 2019) is the identity loss that the encoders were trained with;
CurricularFace (Huang et al. 2020) on IR-101 is what the paper's identity scores come from, so that
the judge is not the trainer. State dicts load strictly, in the published layouts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.metrics.face_cutter import Cut
from pipeline.metrics.face_pool import face_processes
from pipeline.metrics.faces import FaceCutter
from pipeline.metrics.pixel import enlarged
from pipeline.models.backbones import IRSE50, IRSEBlock
from pipeline.models.state_files import check_entries

WARP = 112
DIMENSIONS = 512
# The inner face of a 256 px FFHQ crop, rows and columns (ReStyle's identity loss).
FFHQ_SIDE = 256
FFHQ_ROWS = slice(35, 223)
FFHQ_COLUMNS = slice(32, 220)
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


def _output_layer(affine: bool) -> nn.Sequential:
    return nn.Sequential(
        nn.BatchNorm2d(512),
        nn.Dropout(),  # without effect here; its place in the layout counts
        nn.Flatten(),
        nn.Linear(512 * 7 * 7, DIMENSIONS),
        nn.BatchNorm1d(DIMENSIONS, affine=affine),
    )


class ArcFaceIRSE50(IRSE50):
    """112 px faces to 512 numbers: IR-SE50 with the recognition head."""

    affine = True

    def __init__(self) -> None:
        super().__init__(3)
        self.output_layer = _output_layer(self.affine)

    def forward(self, faces: Tensor) -> Tensor:
        """Descriptors [n, 512] of unit length of faces [n, 3, 112, 112] in [-1, 1], RGB."""
        return F.normalize(self.output_layer(self.body(self.input_layer(faces))))


class CurricularFace(ArcFaceIRSE50):
    """The same head on IR-101: 49 blocks without squeeze-and-excitation."""

    depths = (3, 13, 30, 3)
    affine = False

    def __init__(self) -> None:
        super().__init__()
        for block in self.body:
            if isinstance(block, IRSEBlock):
                block.res_layer = nn.Sequential(*list(block.res_layer)[:-1])


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
        inner = square[:, :, FFHQ_ROWS, FFHQ_COLUMNS]
        descriptors: Tensor = self.network(F.adaptive_avg_pool2d(inner, WARP))
        return descriptors

    def begin(self, images: Tensor) -> Callable[[], Tensor]:
        """See `pipeline.metrics.identity.IdentityNetwork.begin`."""
        descriptors = self.embed(images)
        return lambda: descriptors


def read_arcface(
    state: Mapping[str, Any], weights: str, device: str = "cpu"
) -> ArcFaceIdentity | CurricularFaceIdentity:
    """The network that `state` belongs to; `weights` names the file. Raises `ModelError`."""
    network = CurricularFace() if "body.48.res_layer.4.weight" in state else ArcFaceIRSE50()
    refusal = f"identity weights {weights} fit neither CurricularFace IR-101 nor ArcFace IR-SE50"
    check_entries(network.state_dict(), state, refusal)
    network.load_state_dict(dict(state))
    network.requires_grad_(False).eval().to(device)
    if isinstance(network, CurricularFace):
        return CurricularFaceIdentity(network, weights, face_processes(device))
    return ArcFaceIdentity(network, weights)
