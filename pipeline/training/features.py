"""Feature networks that losses can look through: face recognition and MoCo, differentiable.

Metrics look for the face in every image. A loss cannot, and need not: in an FFHQ crop a face lies
where it always lies, so that a fixed window will do (ReStyle's own identity loss has one).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.dlib_models import dlib_model
from pipeline.errors import ModelError
from pipeline.metrics.arcface import FFHQ_WINDOW, WARP, read_arcface, window_of
from pipeline.models.state_files import read_state

# Where dlib cuts its chips in FFHQ crops: mean of 299 faces, standard deviation 0.01 to 0.02.
DLIB_WINDOW = (0.26, 0.95, 0.155, 0.85)


class FeatureNetwork(Protocol):
    """Images to features that are compared by their cosine."""

    def embed(self, images: Tensor) -> Tensor:
        """Unit-length rows [n, d] of images [n, 3, h, w] in [-1, 1], with gradients."""
        ...


def central_crop(images: Tensor) -> Tensor:
    """The inner face [n, 3, 0.73 h, 0.73 w] of FFHQ crops [n, 3, h, w] (pSp's crop losses)."""
    return window_of(images, FFHQ_WINDOW)


@dataclass(frozen=True)
class FaceFeatures:
    """A face recognition network on a fixed window of FFHQ crops."""

    network: nn.Module
    window: tuple[float, float, float, float]
    side: int  # pixels of the network's input
    levels: tuple[float, float] = (-1.0, 1.0)  # what black and white are to it
    averaged: bool = False  # whether the window is pooled adaptively, not resized smoothly

    def embed(self, images: Tensor) -> Tensor:
        """See `FeatureNetwork.embed`."""
        inner = window_of(images, self.window)
        if self.averaged:  # as the published loss and `ArcFaceIdentity` do it
            face = F.adaptive_avg_pool2d(inner, self.side)
        else:
            face = F.interpolate(
                inner, size=self.side, mode="bilinear", antialias=True, align_corners=False
            )
        black, white = self.levels
        return F.normalize(self.network((face + 1) / 2 * (white - black) + black))


def load_face_features(name: str, device: str = "cpu") -> FaceFeatures:
    """`dlib`, or the network in a weight file (CurricularFace IR-101, ArcFace IR-SE50).

    The published encoders were trained with IR-SE50; a weight file does without dlib. Raises
    `ModelError` where dlib, its models or the file are missing, or fit no network.
    """
    if name != "dlib":
        state, _ = read_state(name, "identity weights")
        arcface = read_arcface(state, name, device)
        return FaceFeatures(arcface, FFHQ_WINDOW, WARP, averaged=True)
    try:
        from pipeline.metrics.dlib_identity import WEIGHTS
        from pipeline.metrics.dlib_resnet import CHIP, read_dlib_resnet
    except ImportError as error:
        raise ModelError(
            f"the identity network 'dlib' needs dlib: pip install dlib-bin ({error}), or name a "
            "weight file"
        ) from error
    network = read_dlib_resnet(dlib_model(WEIGHTS).read_bytes()).to(device)
    return FaceFeatures(network, DLIB_WINDOW, CHIP, (0.0, 255.0))
