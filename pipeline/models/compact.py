"""A small ReStyle encoder for small generators: the demo model's.

Like ReStyle's simplified encoders (Alaluf et al. 2021, sec. 3.3) all style heads read one last map.
It is a twelfth of their cost: heads are grouped convolutions of a few channels a style row, and the
image is the generator's own size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.stylegan2 import LATENT_DIM

LEAK = 0.2
HEAD_CHANNELS = 64


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a 1x1 shortcut; starts as the shortcut alone."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.gain = nn.Parameter(torch.zeros(1))
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        branch = self.second(F.leaky_relu(self.first(x), LEAK)) * self.gain
        passed = F.avg_pool2d(x, self.stride) if self.stride > 1 else x
        return F.leaky_relu(self.shortcut(passed) + branch, LEAK)


class StyleHeads(nn.Module):
    """One code row from each group of channels: 16x16 to 1x1, then a [64, 512] matrix a row."""

    def __init__(self, inputs: int, n_styles: int) -> None:
        super().__init__()
        channels = n_styles * HEAD_CHANNELS
        self.n_styles = n_styles
        self.spread = nn.Conv2d(inputs, channels, 3, stride=2, padding=1)
        self.reduce = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, stride=2, padding=1, groups=n_styles) for _ in range(2)
        )
        self.gather = nn.Conv2d(channels, channels, 2, groups=n_styles)
        self.matrix = nn.Parameter(torch.randn(n_styles, HEAD_CHANNELS, LATENT_DIM) * 0.01)
        self.bias = nn.Parameter(torch.zeros(n_styles, LATENT_DIM))

    def forward(self, x: Tensor) -> Tensor:  # [n, c, 16, 16] -> [n, n_styles, 512]
        x = F.leaky_relu(self.spread(x), LEAK)
        for convolution in self.reduce:
            x = F.leaky_relu(convolution(x), LEAK)
        x = F.leaky_relu(self.gather(x), LEAK).reshape(-1, self.n_styles, HEAD_CHANNELS)
        return torch.einsum("nsc,scd->nsd", x, self.matrix) + self.bias


class CompactEncoder(nn.Module):
    """Target and present reconstruction to a residual in W+.

    The images are `input_size` pixels square, a power of two from 32 on; `width` is the channel
    count at full size.
    """

    def __init__(
        self, n_styles: int, input_size: int = 64, input_channels: int = 6, width: int = 32
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(input_channels, width, 3, padding=1)
        blocks: list[nn.Module] = []
        size, channels = input_size, width
        while size > 16:
            wider = min(2 * channels, 4 * width)
            blocks += [ResidualBlock(channels, wider, stride=2), ResidualBlock(wider, wider)]
            size, channels = size // 2, wider
        blocks.append(ResidualBlock(channels, channels))
        self.body = nn.Sequential(*blocks)
        self.heads = StyleHeads(channels, n_styles)

    def forward(self, pair: Tensor) -> Tensor:
        """[n, 6, s, s] in [-1, 1] (target, then reconstruction) to [n, n_styles, 512]."""
        residual: Tensor = self.heads(self.body(F.leaky_relu(self.stem(pair), LEAK)))
        return residual
