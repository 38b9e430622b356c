"""Image losses of both training stages, all on images in [-1, 1]."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.metrics.lpips import Lpips

# AlexNet's first layer has stride 4: on a fixed grid a generator learns to put blobs at its nodes.
LARGEST_SHIFT = 7


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
