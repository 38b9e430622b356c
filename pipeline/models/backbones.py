"""The two convolutional bodies that the encoders stand on, in the published checkpoint layouts.

IR-SE50: residual blocks with batch normalisation first and squeeze-and-excitation last (ArcFace,
Deng et al. 2019, sec. 3.2.2; Hu et al. 2018), which faces use. ResNet34 (He et al. 2016, table 1)
without its first pooling, which the other domains use. Both turn 256 px into a 16x16 map.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

IR_SE50_DEPTHS = (3, 4, 14, 3)
RESNET34_DEPTHS = (3, 4, 6, 3)
WIDTHS = (64, 128, 256, 512)
SQUEEZE = 16


def stage_ends(depths: Sequence[int]) -> tuple[int, ...]:
    """Index of the last block of each stage: (2, 6, 20, 23) for IR-SE50."""
    return tuple(end - 1 for end in itertools.accumulate(depths))


def _units(depths: Sequence[int], widths: Sequence[int]) -> Iterator[tuple[int, int, bool]]:
    """(inputs, outputs, first of its stage) of every block."""
    inputs = widths[0]
    for depth, outputs in zip(depths, widths, strict=True):
        for unit in range(depth):
            yield inputs, outputs, unit == 0
            inputs = outputs


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate computed from all channel means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // SQUEEZE, 1, bias=False)
        self.fc2 = nn.Conv2d(channels // SQUEEZE, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # [n, c, h, w]
        means = x.mean(dim=(2, 3), keepdim=True)
        gate = torch.sigmoid(self.fc2(torch.relu(self.fc1(means))))
        return x * gate


class IRSEBlock(nn.Module):
    """Batch norm, conv, PReLU, strided conv, batch norm, squeeze-and-excitation; plus shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.shortcut_layer: nn.Sequential | None = None
        if inputs != outputs:
            self.shortcut_layer = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False),
            nn.PReLU(outputs),
            nn.Conv2d(outputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            SqueezeExcite(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.shortcut_layer is None:
            shortcut = x[:, :, :: self.stride, :: self.stride]
        else:
            shortcut = self.shortcut_layer(x)
        residual: Tensor = self.res_layer(x)
        return residual + shortcut


class IRSE50(nn.Module):
    """Input layer at full size, then 24 blocks; every stage starts with a stride of 2."""

    depths = IR_SE50_DEPTHS

    def __init__(self, input_channels: int, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        self.input_layer = nn.Sequential(
            nn.Conv2d(input_channels, widths[0], 3, 1, 1, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.PReLU(widths[0]),
        )
        self.body = nn.Sequential(
            *(IRSEBlock(i, o, 2 if first else 1) for i, o, first in _units(self.depths, widths))
        )

    def features(self, x: Tensor) -> Iterator[Tensor]:  # [n, c, h, w]
        """The map at the end of each of the four stages, largest first."""
        x = self.input_layer(x)
        ends = stage_ends(self.depths)
        for index, block in enumerate(self.body):
            x = block(x)
            if index in ends:
                yield x


class ResNetBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, ReLU; plus shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Sequential | None = None
        if stride != 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        residual = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(residual + (x if self.downsample is None else self.downsample(x)))


class ResNet34(nn.Module):
    """A 7x7 convolution of stride 2, then 16 blocks; the later three stages start with stride 2."""

    depths = RESNET34_DEPTHS

    def __init__(self, input_channels: int, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(input_channels, widths[0], 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.PReLU(widths[0])
        first_of_all = itertools.chain([False], itertools.repeat(True))
        self.body = nn.Sequential()
        for (i, o, first), later in zip(_units(self.depths, widths), first_of_all, strict=False):
            self.body.append(ResNetBlock(i, o, 2 if first and later else 1))

    def features(self, x: Tensor) -> Iterator[Tensor]:  # [n, c, h, w]
        """The map at the end of each of the four stages, largest first."""
        x = self.relu(self.bn1(self.conv1(x)))
        ends = stage_ends(self.depths)
        for index, block in enumerate(self.body):
            x = block(x)
            if index in ends:
                yield x
