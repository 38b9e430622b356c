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


def shifted_lpips(network: Lpips, a: Tensor, b: Tensor, size: int = 128) -> Tensor:
    """LPIPS [n] of both batches, enlarged to `size` and shifted together by a random 0-7 px."""
    if a.shape[-1] < size:
        a = F.interpolate(a, size=size, mode="bilinear", align_corners=False)
        b = F.interpolate(b, size=size, mode="bilinear", align_corners=False)
    down, right = torch.randint(0, LARGEST_SHIFT + 1, (2,)).tolist()
    return network(a[..., down:, right:], b[..., down:, right:])
