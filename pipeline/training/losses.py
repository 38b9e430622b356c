"""Losses on images in [-1, 1], and the feature networks that they use.

Metrics detect the face in every image. Losses use a fixed window instead, because FFHQ alignment
puts every face at the same place (ReStyle's own identity loss does the same).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.dlib_models import dlib_model
from pipeline.errors import ModelError
from pipeline.metrics.arcface import FFHQ_WINDOW, WARP, read_arcface, window_of
from pipeline.metrics.lpips import Lpips, load_lpips
from pipeline.models.state_files import read_state

# Box of dlib's face chips in FFHQ crops: mean of 299 faces, standard deviation 0.01 to 0.02.
DLIB_WINDOW = (0.26, 0.95, 0.155, 0.85)


class FeatureNetwork(Protocol):
    """Network whose features are compared by their cosine."""

    def embed(self, images: Tensor) -> Tensor:
        """Return unit vectors [n, d] for images [n, 3, h, w] in [-1, 1], with gradients."""
        ...


def central_crop(images: Tensor) -> Tensor:
    """Return the inner face [n, 3, 0.73 h, 0.73 w] of FFHQ crops [n, 3, h, w] (pSp, sec. 3.2)."""
    return window_of(images, FFHQ_WINDOW)


@dataclass(frozen=True)
class FaceFeatures:
    """Face recognition network applied to a fixed window of FFHQ crops."""

    network: nn.Module
    window: tuple[float, float, float, float]
    side: int  # pixels of the network's input
    levels: tuple[float, float] = (-1.0, 1.0)  # its input values of black and white
    averaged: bool = False  # resize by adaptive pooling instead of bilinear interpolation

    def embed(self, images: Tensor) -> Tensor:
        """See `FeatureNetwork.embed`."""
        inner = window_of(images, self.window)
        if self.averaged:  # as in the published loss and in `ArcFaceIdentity`
            face = F.adaptive_avg_pool2d(inner, self.side)
        else:
            face = F.interpolate(
                inner, size=self.side, mode="bilinear", antialias=True, align_corners=False
            )
        black, white = self.levels
        return F.normalize(self.network((face + 1) / 2 * (white - black) + black))


def load_face_features(name: str, device: str = "cpu") -> FaceFeatures:
    """Load `dlib`'s network or one from a weight file (CurricularFace IR-101, ArcFace IR-SE50).

    The published encoders were trained with IR-SE50. A weight file does not need dlib. Raises
    `ModelError` when dlib, its models or the file are missing, or when the file fits no network.
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
            f"the identity network 'dlib' needs dlib: pip install dlib-bin ({error}), or give a "
            "weight file"
        ) from error
    network = read_dlib_resnet(dlib_model(WEIGHTS).read_bytes()).to(device)
    return FaceFeatures(network, DLIB_WINDOW, CHIP, (0.0, 255.0))


# AlexNet's first layer has stride 4: without shifts a generator learns blobs at its grid points.
MAX_SHIFT = 7
LPIPS_SIDE = 128  # pixels; smaller images are enlarged


@dataclass(frozen=True)
class ImageWeights:
    """Weights of the terms that compare two images; terms of weight 0 are not computed.

    The published encoders of faces have l2 1, lpips 0.8, identity 0.1; those of other domains l2 1,
    lpips 0.8, moco 0.5 (ReStyle, sec. 4 and supplement; pSp, sec. 3.2 for the crops).
    """

    l1: float = 0.0
    l2: float = 0.0
    l2_crop: float = 0.0
    blocks: float = 0.0  # L1 of the means over a 16x16 grid: overall colours, early in a training
    lpips: float = 0.0
    lpips_crop: float = 0.0
    identity: float = 0.0
    moco: float = 0.0


def block_means(images: Tensor, blocks: int = 16) -> Tensor:
    """Return means over a `blocks` x `blocks` grid, [n, 3, blocks, blocks]."""
    return F.adaptive_avg_pool2d(images, blocks)


class ShiftedLpips:
    """LPIPS against one batch of targets; all images have the same random shift of 0 to 7 px.

    The targets' features are computed once for all reconstructions.
    """

    def __init__(self, network: Lpips, target: Tensor) -> None:
        self.network = network
        self.down, self.right = torch.randint(0, MAX_SHIFT + 1, (2,)).tolist()
        with torch.no_grad():
            self.features = network.embed(self._enlarge_and_shift(target))

    def _enlarge_and_shift(self, images: Tensor) -> Tensor:
        if images.shape[-1] < LPIPS_SIDE:
            images = F.interpolate(images, size=LPIPS_SIDE, mode="bilinear", align_corners=False)
        return images[..., self.down :, self.right :]

    def __call__(self, images: Tensor) -> Tensor:
        """Return LPIPS [n] of images [n, 3, s, s] in [-1, 1]; enlarges smaller ones to 128 px."""
        return self.network.compare(
            self.network.embed(self._enlarge_and_shift(images)), self.features
        )


class ImageLoss:
    """Weighted sum of image terms against one batch of targets [n, 3, h, w].

    The targets' features are computed once. `networks` has the feature networks of the terms
    `identity` and `moco`.
    """

    def __init__(
        self,
        weights: ImageWeights,
        target: Tensor,
        networks: Mapping[str, FeatureNetwork] | None = None,
    ) -> None:
        self.weights = {name: weight for name, weight in asdict(weights).items() if weight}
        self.terms: dict[str, Callable[[Tensor], Tensor]] = {
            name: self._term(name, target, networks or {}) for name in self.weights
        }

    def _term(
        self, name: str, target: Tensor, networks: Mapping[str, FeatureNetwork]
    ) -> Callable[[Tensor], Tensor]:
        if name in networks:
            network = networks[name]
            with torch.no_grad():
                features = network.embed(target)
            return lambda images: (1 - (network.embed(images) * features).sum(dim=1)).mean()
        if name.endswith("_crop"):
            whole = self._term(name.removesuffix("_crop"), central_crop(target), networks)
            return lambda images: whole(central_crop(images))
        if name == "lpips":
            perceptual = ShiftedLpips(load_lpips(str(target.device)), target)
            return lambda images: perceptual(images).mean()
        if name == "blocks":
            means = block_means(target)
            return lambda images: F.l1_loss(block_means(images), means)
        distance = {"l1": F.l1_loss, "l2": F.mse_loss}[name]
        return lambda images: distance(images, target)

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Return each term of `images` [n, 3, h, w], unweighted, and the weighted sum as `loss`."""
        terms = {name: term(images) for name, term in self.terms.items()}
        loss = sum(
            (self.weights[name] * term for name, term in terms.items()), images.new_zeros(())
        )
        return {**terms, "loss": loss}
