"""Face recognition networks of the ArcFace family, as the ReStyle scripts use them.

Encoders are trained with IR-SE50 (ArcFace, Deng et al. 2019) as identity loss. The paper's identity
scores come from CurricularFace (Huang et al. 2020) on IR-101, a network that is not used for
training. State dicts load strictly, in the published layouts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.encoders import IRSE50, IRSEBlock
from pipeline.models.state_files import check_entries

WARP = 112  # pixels of the networks' input
DIMENSIONS = 512
FFHQ_SIDE = 256
# Inner face of an FFHQ crop (ReStyle's identity loss): top, bottom, left and right as fractions of
# the side. Of 256 px these are rows 35-223 and columns 32-220.
FFHQ_WINDOW = (35 / 256, 223 / 256, 32 / 256, 220 / 256)


def window_of(images: Tensor, window: tuple[float, float, float, float]) -> Tensor:
    """Return `window` (top, bottom, left, right; fractions of the side) of [n, 3, h, w]."""
    height, width = images.shape[-2:]
    top, bottom = round(window[0] * height), round(window[1] * height)
    left, right = round(window[2] * width), round(window[3] * width)
    return images[..., top:bottom, left:right]


class ArcFaceIRSE50(IRSE50):
    """IR-SE50 with the recognition head: 112 px faces to 512 numbers."""

    affine = True

    def __init__(self) -> None:
        super().__init__(3)
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(512),
            nn.Dropout(),  # without effect here; keeps the published layer indices
            nn.Flatten(),
            nn.Linear(512 * 7 * 7, DIMENSIONS),
            nn.BatchNorm1d(DIMENSIONS, affine=self.affine),
        )

    def forward(self, faces: Tensor) -> Tensor:
        """Return unit-length descriptors [n, 512] of RGB faces [n, 3, 112, 112] in [-1, 1]."""
        return F.normalize(self.output_layer(self.body(self.input_layer(faces))))


class CurricularFace(ArcFaceIRSE50):
    """IR-101 with the same head: 49 blocks without squeeze-and-excitation."""

    depths = (3, 13, 30, 3)
    affine = False

    def __init__(self) -> None:
        super().__init__()
        for block in self.body:
            if isinstance(block, IRSEBlock):
                block.res_layer = nn.Sequential(*list(block.res_layer)[:-1])


def read_arcface(state: Mapping[str, Any], weights: str, device: str = "cpu") -> ArcFaceIRSE50:
    """Return the network of `state`; `weights` names the file. Raises `ModelError`."""
    network = CurricularFace() if "body.48.res_layer.4.weight" in state else ArcFaceIRSE50()
    message = f"identity weights {weights} fit neither CurricularFace IR-101 nor ArcFace IR-SE50"
    check_entries(network.state_dict(), state, message)
    network.load_state_dict(dict(state))
    network.requires_grad_(False).eval().to(device)
    return network
