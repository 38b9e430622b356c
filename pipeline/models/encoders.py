"""ReStyle encoders: the published ones in the layout of official checkpoints, and a compact one.

IR-SE50: residual blocks with batch normalisation first and squeeze-and-excitation last (ArcFace,
Deng et al. 2019, sec. 3.2.2; Hu et al. 2018), used for faces. ResNet34 (He et al. 2016, table 1)
without its first pooling, used for the other domains. Both turn 256 px into a 16x16 map.

`CompactEncoder` is the demo model's own. As in ReStyle's simplified encoders (Alaluf et al. 2021,
sec. 3.3) all style heads read one last map. It needs a twelfth of their computation: heads are
grouped convolutions with few channels per style row, and its input has the generator's size.

| encoder type                       | body     | style heads read                   | rows      |
|------------------------------------|----------|------------------------------------|-----------|
| `BackboneEncoder`                  | IR-SE50  | the last map (ReStyle, sec. 3.3)   | separate  |
| `ResNetBackboneEncoder`            | ResNet34 | the last map                       | separate  |
| `ProgressiveBackboneEncoder`       | IR-SE50  | the last map                       | w + delta |
| `ResNetProgressiveBackboneEncoder` | ResNet34 | the last map                       | w + delta |
| `GradualStyleEncoder`              | IR-SE50  | a feature pyramid (pSp, sec. 3.1)  | separate  |
| `ResNetGradualStyleEncoder`        | ResNet34 | a feature pyramid                  | separate  |
| `Encoder4Editing`                  | IR-SE50  | a feature pyramid (e4e, sec. 4)    | w + delta |
| `CompactEncoder`                   | residual | the last map                       | separate  |

A model that consists of a generator alone has `NoEncoder`; only optimisation can invert with it.

Every encoder maps `[n, input_channels, h, w]` in [-1, 1] to codes `[n, n_styles, 512]`.
`ENCODER_TYPES` maps a type to its class; the keyword arguments are plain JSON, and a model bundle
stores them.
"""

from __future__ import annotations

import bisect
import itertools
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import ModelError
from pipeline.models.stylegan2 import LATENT_DIM, EqualLinear, normal

WIDTHS = (64, 128, 256, 512)
SQUEEZE = 16


def stage_ends(depths: Sequence[int]) -> tuple[int, ...]:
    """Return the index of the last block of each stage: (2, 6, 20, 23) for IR-SE50."""
    return tuple(end - 1 for end in itertools.accumulate(depths))


def _units(depths: Sequence[int], widths: Sequence[int]) -> Iterator[tuple[int, int, bool]]:
    """Yield (inputs, outputs, whether it is the first of its stage) for every block."""
    inputs = widths[0]
    for depth, outputs in zip(depths, widths, strict=True):
        for unit in range(depth):
            yield inputs, outputs, unit == 0
            inputs = outputs


class SqueezeExcite(nn.Module):
    """Squeeze-and-excitation: scale each channel by a gate computed from all channel means."""

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


class Body(nn.Module, ABC):
    """Stem, then residual blocks in four stages of `depths`."""

    depths: tuple[int, ...]
    body: nn.Sequential

    @abstractmethod
    def stem(self, x: Tensor) -> Tensor:
        """Return the input of the first block for images [n, c, h, w]."""

    def features(self, x: Tensor) -> Iterator[Tensor]:  # [n, c, h, w]
        """Yield the map at the end of each of the four stages, largest first."""
        x = self.stem(x)
        ends = stage_ends(self.depths)
        for index, block in enumerate(self.body):
            x = block(x)
            if index in ends:
                yield x


class IRSE50(Body):
    """Input layer at full size, then 24 blocks; every stage starts with a stride of 2."""

    depths = (3, 4, 14, 3)

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

    def stem(self, x: Tensor) -> Tensor:
        result: Tensor = self.input_layer(x)
        return result


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


class ResNet34(Body):
    """A 7x7 convolution of stride 2, then 16 blocks; the later three stages start with stride 2."""

    depths = (3, 4, 6, 3)

    def __init__(self, input_channels: int, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(input_channels, widths[0], 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.PReLU(widths[0])
        self.body = nn.Sequential()
        for index, (i, o, first) in enumerate(_units(self.depths, widths)):
            self.body.append(ResNetBlock(i, o, 2 if first and index else 1))

    def stem(self, x: Tensor) -> Tensor:
        result: Tensor = self.relu(self.bn1(self.conv1(x)))
        return result


LEAK = 0.2
HEAD_CHANNELS = 64


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a 1x1 shortcut; initially equal to the shortcut alone."""

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
    """Style heads as grouped convolutions, 16x16 to 1x1, and a [64, 512] matrix per row."""

    def __init__(self, inputs: int, n_styles: int) -> None:
        super().__init__()
        channels = n_styles * HEAD_CHANNELS
        self.n_styles = n_styles
        self.spread = nn.Conv2d(inputs, channels, 3, stride=2, padding=1)
        self.reduce = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, stride=2, padding=1, groups=n_styles) for _ in range(2)
        )
        self.gather = nn.Conv2d(channels, channels, 2, groups=n_styles)
        matrix = normal(n_styles, HEAD_CHANNELS, LATENT_DIM, scaled=lambda drawn: drawn * 0.01)
        self.matrix = nn.Parameter(matrix)
        self.bias = nn.Parameter(torch.zeros(n_styles, LATENT_DIM))

    def forward(self, x: Tensor) -> Tensor:  # [n, c, 16, 16] -> [n, n_styles, 512]
        x = F.leaky_relu(self.spread(x), LEAK)
        for convolution in self.reduce:
            x = F.leaky_relu(convolution(x), LEAK)
        x = F.leaky_relu(self.gather(x), LEAK).reshape(-1, self.n_styles, HEAD_CHANNELS)
        return torch.einsum("nsc,scd->nsd", x, self.matrix) + self.bias


class CompactEncoder(nn.Module):
    """Map target and current reconstruction to a residual in W+.

    Images are square with side `input_size`, a power of two of at least 32; `width` is the number
    of channels at full size.
    """

    def __init__(
        self, n_styles: int, input_size: int = 64, input_channels: int = 6, width: int = 32
    ) -> None:
        super().__init__()
        self.input_size = input_size
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
        """Map [n, 6, s, s] in [-1, 1] (target, reconstruction) to [n, n_styles, 512]."""
        residual: Tensor = self.heads(self.body(F.leaky_relu(self.stem(pair), LEAK)))
        return residual


HEAD_LEAK = 0.01


class StyleHead(nn.Module):
    """map2style of pSp: convolutions of stride 2 down to one position, then a linear layer."""

    def __init__(self, inputs: int, n_convs: int) -> None:
        super().__init__()
        self.convs = nn.Sequential()
        for index in range(n_convs):
            self.convs.append(nn.Conv2d(LATENT_DIM if index else inputs, LATENT_DIM, 3, 2, 1))
            self.convs.append(nn.LeakyReLU(HEAD_LEAK))
        self.linear = EqualLinear(LATENT_DIM, LATENT_DIM)

    def forward(self, x: Tensor) -> Tensor:  # [n, c, h, w] -> [n, 512]
        row: Tensor = self.linear(self.convs(x).flatten(1))
        return row


def progressive(rows: Tensor) -> Tensor:
    """Add row 0, which is w, to all other rows, which are offsets (e4e, sec. 4.1)."""
    w, deltas = rows[:, :1], rows[:, 1:]
    return torch.cat([w, w + deltas], dim=1)


class RowHeads(Body):
    """Style heads, one per row, on the last map; a subclass inherits a body after this class."""

    first_rows: tuple[int, ...] = (0,)  # of each map that heads read, the smallest map first
    is_progressive = False  # whether rows are offsets from the first one

    def __init__(self, input_channels: int, n_styles: int, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__(input_channels, widths)
        # Four convolutions reduce 16 px to one; a larger map needs one more.
        self.styles = nn.ModuleList(
            StyleHead(widths[-1], 4 + self.level_of(row)) for row in range(n_styles)
        )

    def level_of(self, row: int) -> int:
        """Return the index of the map that the head of `row` reads."""
        return bisect.bisect_right(self.first_rows, row) - 1

    def maps(self, x: Tensor) -> list[Tensor]:
        """Return the maps that heads read: the first of 16 px, each further one twice as large."""
        *_, last = self.features(x)
        return [last]

    def forward(self, x: Tensor) -> Tensor:
        maps = self.maps(x)
        rows = [head(maps[self.level_of(row)]) for row, head in enumerate(self.styles)]
        stacked = torch.stack(rows, dim=1)
        return progressive(stacked) if self.is_progressive else stacked


class PyramidHeads(RowHeads):
    """Heads of rows 0-2 read a map of 16 px, 3-6 of 32 px, others of 64 px (pSp, sec. 3.1)."""

    first_rows = (0, 3, 7)

    def __init__(self, input_channels: int, n_styles: int, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__(input_channels, n_styles, widths)
        self.latlayer1 = nn.Conv2d(widths[2], widths[3], 1)
        self.latlayer2 = nn.Conv2d(widths[1], widths[3], 1)

    def maps(self, x: Tensor) -> list[Tensor]:
        _, fine, middle, coarse = self.features(x)
        middle = _enlarged(coarse, like=middle) + self.latlayer1(middle)
        return [coarse, middle, _enlarged(middle, like=fine) + self.latlayer2(fine)]


def _enlarged(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=True)


class BackboneEncoder(RowHeads, IRSE50):
    """ReStyle-pSp encoder for faces."""


class ProgressiveBackboneEncoder(BackboneEncoder):
    """ReStyle-e4e encoder for faces."""

    is_progressive = True


class ResNetBackboneEncoder(RowHeads, ResNet34):
    """ReStyle-pSp encoder for the other domains."""


class ResNetProgressiveBackboneEncoder(ResNetBackboneEncoder):
    """ReStyle-e4e encoder for the other domains."""

    is_progressive = True


class GradualStyleEncoder(PyramidHeads, IRSE50):
    """Encoder of the original pSp."""


class Encoder4Editing(GradualStyleEncoder):
    """Encoder of the original e4e."""

    is_progressive = True


class ResNetGradualStyleEncoder(PyramidHeads, ResNet34):
    """Heads of the original pSp on the ResNet34 body."""


class NoEncoder(nn.Module):
    """Placeholder without weights, in a model that consists of a generator alone."""

    def __init__(self, input_channels: int, n_styles: int) -> None:
        super().__init__()
        self.input_channels, self.n_styles = input_channels, n_styles

    def forward(self, x: Tensor) -> Tensor:
        raise ModelError(
            f"this model has no encoder, so it cannot compute codes of {len(x)} images"
        )


OFFICIAL_ENCODERS: tuple[type[RowHeads], ...] = (
    BackboneEncoder,
    ProgressiveBackboneEncoder,
    ResNetBackboneEncoder,
    ResNetProgressiveBackboneEncoder,
    GradualStyleEncoder,
    ResNetGradualStyleEncoder,
    Encoder4Editing,
)

ENCODER_TYPES: dict[str, Callable[..., nn.Module]] = {
    encoder.__name__: encoder for encoder in (*OFFICIAL_ENCODERS, CompactEncoder)
}
NO_ENCODER = NoEncoder.__name__


def official_arguments(encoder_type: str, shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Return an official encoder's constructor arguments, from its weights' shapes (no prefix).

    Raises `KeyError` with the name of a weight that is needed for this and missing.
    """
    encoder = next(each for each in OFFICIAL_ENCODERS if each.__name__ == encoder_type)
    residual = issubclass(encoder, ResNet34)
    first = shapes["conv1.weight" if residual else "input_layer.0.weight"]
    block = "body.{}.conv2.weight" if residual else "body.{}.res_layer.3.weight"
    heads = {match[1] for key in shapes if (match := re.match(r"styles\.(\d+)\.", key))}
    return {
        "input_channels": int(first[1]),
        "n_styles": len(heads),
        "widths": [int(shapes[block.format(end)][0]) for end in stage_ends(encoder.depths)],
    }


def fitting_encoders(keys: Collection[str]) -> list[str]:
    """Return the official types whose weights have names like `keys` (no prefix).

    Names determine the body and the pyramid, but not whether rows are offsets from the first.
    """
    residual, pyramid = "conv1.weight" in keys, "latlayer1.weight" in keys
    if not residual and "input_layer.0.weight" not in keys:
        return []
    return [
        encoder.__name__
        for encoder in OFFICIAL_ENCODERS
        if issubclass(encoder, ResNet34) == residual
        and issubclass(encoder, PyramidHeads) == pyramid
    ]
