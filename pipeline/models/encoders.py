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

import itertools
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.choices import OFFICIAL_TYPES as OFFICIAL_TYPES
from pipeline.errors import ModelError
from pipeline.models.stylegan2 import LATENT_DIM, EqualLinear, normal

IR_SE50_DEPTHS = (3, 4, 14, 3)
RESNET34_DEPTHS = (3, 4, 6, 3)
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
        """Yield the map at the end of each of the four stages, largest first."""
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
        """Yield the map at the end of each of the four stages, largest first."""
        x = self.relu(self.bn1(self.conv1(x)))
        ends = stage_ends(self.depths)
        for index, block in enumerate(self.body):
            x = block(x)
            if index in ends:
                yield x


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


# Heads of rows 0-2 read the 16x16 map, of rows 3-6 the 32x32 map, of the rest the 64x64 map (pSp,
# sec. 3.1).
COARSE_ROWS, MIDDLE_ROWS = 3, 7
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


def last_map_heads(n_styles: int, widths: Sequence[int]) -> nn.ModuleList:
    """Return heads for a 16x16 map, with four convolutions each."""
    return nn.ModuleList(StyleHead(widths[-1], 4) for _ in range(n_styles))


def pyramid_heads(n_styles: int, widths: Sequence[int]) -> nn.ModuleList:
    """Return heads for maps of 16, 32 and 64 px, with four, five and six convolutions."""
    depths = [4 if row < COARSE_ROWS else 5 if row < MIDDLE_ROWS else 6 for row in range(n_styles)]
    return nn.ModuleList(StyleHead(widths[-1], depth) for depth in depths)


def last_map_rows(heads: nn.ModuleList, features: Iterable[Tensor]) -> Tensor:
    """Apply every head to the last map of `features`; returns [n, n_styles, 512]."""
    *_, last = features
    return torch.stack([head(last) for head in heads], dim=1)


def pyramid_rows(
    heads: nn.ModuleList, features: Iterable[Tensor], to_middle: nn.Module, to_fine: nn.Module
) -> Tensor:
    """Apply each head to the pyramid level of its row; returns [n, n_styles, 512]."""
    _, fine, middle, coarse = features
    middle = _enlarged(coarse, like=middle) + to_middle(middle)
    fine = _enlarged(middle, like=fine) + to_fine(fine)
    rows = [
        head(coarse if row < COARSE_ROWS else middle if row < MIDDLE_ROWS else fine)
        for row, head in enumerate(heads)
    ]
    return torch.stack(rows, dim=1)


def _enlarged(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=True)


def progressive(rows: Tensor) -> Tensor:
    """Add row 0, which is w, to all other rows, which are offsets (e4e, sec. 4.1)."""
    w, deltas = rows[:, :1], rows[:, 1:]
    return torch.cat([w, w + deltas], dim=1)


class BackboneEncoder(IRSE50):
    """ReStyle-pSp encoder for faces."""

    def __init__(self, input_channels: int, n_styles: int, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__(input_channels, widths)
        self.styles = last_map_heads(n_styles, widths)

    def forward(self, x: Tensor) -> Tensor:
        return last_map_rows(self.styles, self.features(x))


class ProgressiveBackboneEncoder(BackboneEncoder):
    """ReStyle-e4e encoder for faces."""

    def forward(self, x: Tensor) -> Tensor:
        return progressive(super().forward(x))


class ResNetBackboneEncoder(ResNet34):
    """ReStyle-pSp encoder for the other domains."""

    def __init__(self, input_channels: int, n_styles: int, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__(input_channels, widths)
        self.styles = last_map_heads(n_styles, widths)

    def forward(self, x: Tensor) -> Tensor:
        return last_map_rows(self.styles, self.features(x))


class ResNetProgressiveBackboneEncoder(ResNetBackboneEncoder):
    """ReStyle-e4e encoder for the other domains."""

    def forward(self, x: Tensor) -> Tensor:
        return progressive(super().forward(x))


class GradualStyleEncoder(IRSE50):
    """Encoder of the original pSp."""

    def __init__(self, input_channels: int, n_styles: int, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__(input_channels, widths)
        self.styles = pyramid_heads(n_styles, widths)
        self.latlayer1 = nn.Conv2d(widths[2], widths[3], 1)
        self.latlayer2 = nn.Conv2d(widths[1], widths[3], 1)

    def forward(self, x: Tensor) -> Tensor:
        return pyramid_rows(self.styles, self.features(x), self.latlayer1, self.latlayer2)


class Encoder4Editing(GradualStyleEncoder):
    """Encoder of the original e4e."""

    def forward(self, x: Tensor) -> Tensor:
        return progressive(super().forward(x))


class ResNetGradualStyleEncoder(ResNet34):
    """Heads of the original pSp on the ResNet34 body."""

    def __init__(self, input_channels: int, n_styles: int, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__(input_channels, widths)
        self.styles = pyramid_heads(n_styles, widths)
        self.latlayer1 = nn.Conv2d(widths[2], widths[3], 1)
        self.latlayer2 = nn.Conv2d(widths[1], widths[3], 1)

    def forward(self, x: Tensor) -> Tensor:
        return pyramid_rows(self.styles, self.features(x), self.latlayer1, self.latlayer2)


class NoEncoder(nn.Module):
    """Placeholder without weights, in a model that consists of a generator alone."""

    def __init__(self, input_channels: int, n_styles: int) -> None:
        super().__init__()
        self.input_channels, self.n_styles = input_channels, n_styles

    def forward(self, x: Tensor) -> Tensor:
        raise ModelError(
            f"this model has no encoder, so it cannot compute codes of {len(x)} images"
        )


OFFICIAL_ENCODERS: tuple[type[IRSE50] | type[ResNet34], ...] = (
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
    residual = issubclass(_class_of(encoder_type), ResNet34)
    first = shapes["conv1.weight" if residual else "input_layer.0.weight"]
    block = "body.{}.conv2.weight" if residual else "body.{}.res_layer.3.weight"
    depths = ResNet34.depths if residual else IRSE50.depths
    heads = {match[1] for key in shapes if (match := re.match(r"styles\.(\d+)\.", key))}
    return {
        "input_channels": int(first[1]),
        "n_styles": len(heads),
        "widths": [int(shapes[block.format(end)][0]) for end in stage_ends(depths)],
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
        and issubclass(encoder, (GradualStyleEncoder, ResNetGradualStyleEncoder)) == pyramid
    ]


def _class_of(encoder_type: str) -> type[IRSE50] | type[ResNet34]:
    return next(encoder for encoder in OFFICIAL_ENCODERS if encoder.__name__ == encoder_type)
