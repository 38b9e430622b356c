"""Image losses on images in [-1, 1], and the feature networks that they use.

Metrics look for the face in every image. A loss cannot, and need not: in an FFHQ crop a face lies
where it always lies, so that a fixed window will do (ReStyle's own identity loss has one).
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


# AlexNet's first layer has stride 4: on a fixed grid a generator learns to put blobs at its nodes.
LARGEST_SHIFT = 7


@dataclass(frozen=True)
class ImageWeights:
    """Weights of the terms that compare two images; a term of weight 0 is not computed.

    The published encoders of faces have l2 1, lpips 0.8, identity 0.1; those of other domains l2 1,
    lpips 0.8, moco 0.5 (ReStyle, sec. 4 and supplement; pSp, sec. 3.2 for the crops).
    """

    l1: float = 0.0
    l2: float = 0.0
    l2_crop: float = 0.0
    blocks: float = 0.0  # L1 of the means over 16x16 blocks: overall colours, early in a training
    lpips: float = 0.0
    lpips_crop: float = 0.0
    identity: float = 0.0
    moco: float = 0.0


def block_means(images: Tensor, blocks: int = 16) -> Tensor:
    """Means over a `blocks` x `blocks` grid, [n, 3, blocks, blocks]."""
    return F.adaptive_avg_pool2d(images, blocks)


class ShiftedLpips:
    """LPIPS against one batch of targets, everything shifted by one random 0-7 px.

    The targets' features are computed once, however many reconstructions are compared.
    """

    def __init__(self, network: Lpips, target: Tensor, size: int = 128) -> None:
        self.network, self.size = network, size
        self.down, self.right = torch.randint(0, LARGEST_SHIFT + 1, (2,)).tolist()
        with torch.no_grad():
            self.features = network.embed(self._place(target))

    def _place(self, images: Tensor) -> Tensor:
        if images.shape[-1] < self.size:
            images = F.interpolate(images, size=self.size, mode="bilinear", align_corners=False)
        return images[..., self.down :, self.right :]

    def __call__(self, made: Tensor) -> Tensor:
        """LPIPS [n] of `made` [n, 3, s, s] in [-1, 1], enlarged to `size` where it is smaller."""
        return self.network.compare(self.network.embed(self._place(made)), self.features)


class _Unlikeness:
    """1 - cosine of a network's features against those of a batch of targets."""

    def __init__(self, network: FeatureNetwork, target: Tensor) -> None:
        self.network = network
        with torch.no_grad():
            self.features = network.embed(target)

    def __call__(self, made: Tensor) -> Tensor:
        return (1 - (self.network.embed(made) * self.features).sum(dim=1)).mean()


class ImageLoss:
    """The weighted terms against one batch of targets [n, 3, h, w]; what can be is prepared once.

    `networks` holds the feature networks of the terms `identity` and `moco`.
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
            return _Unlikeness(networks[name], target)
        if name.endswith("_crop"):
            whole = self._term(name.removesuffix("_crop"), central_crop(target), networks)
            return lambda made: whole(central_crop(made))
        if name == "lpips":
            perceptual = ShiftedLpips(load_lpips(str(target.device)), target)
            return lambda made: perceptual(made).mean()
        if name == "blocks":
            means = block_means(target)
            return lambda made: F.l1_loss(block_means(made), means)
        distance = {"l1": F.l1_loss, "l2": F.mse_loss}[name]
        return lambda made: distance(made, target)

    def __call__(self, made: Tensor) -> dict[str, Tensor]:
        """Every term of `made` [n, 3, h, w] without its weight, and the weighted sum `loss`."""
        terms = {name: term(made) for name, term in self.terms.items()}
        loss = sum((self.weights[name] * term for name, term in terms.items()), made.new_zeros(()))
        return {**terms, "loss": loss}
