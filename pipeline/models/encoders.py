"""The published encoders, in the layout that official checkpoints carry under `encoder.`.

| encoder type                       | body     | style heads read                   | rows      |
|------------------------------------|----------|------------------------------------|-----------|
| `BackboneEncoder`                  | IR-SE50  | the last map (ReStyle, sec. 3.3)   | separate  |
| `ResNetBackboneEncoder`            | ResNet34 | the last map                       | separate  |
| `ProgressiveBackboneEncoder`       | IR-SE50  | the last map                       | w + delta |
| `ResNetProgressiveBackboneEncoder` | ResNet34 | the last map                       | w + delta |
| `GradualStyleEncoder`              | IR-SE50  | a feature pyramid (pSp, sec. 3.1)  | separate  |
| `ResNetGradualStyleEncoder`        | ResNet34 | a feature pyramid                  | separate  |
| `Encoder4Editing`                  | IR-SE50  | a feature pyramid (e4e, sec. 4)    | w + delta |
| `CompactEncoder` (compact.py)      | residual | the last map; the demo model's own | separate  |

A model of a generator alone has `NoEncoder`, which only optimisation can do with.

Every encoder maps `[n, input_channels, h, w]` in [-1, 1] to codes `[n, n_styles, 512]`.
`ENCODER_TYPES` finds a class by its name; its keyword arguments are plain JSON, and a model bundle
stores them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.choices import OFFICIAL_TYPES as OFFICIAL_TYPES
from pipeline.errors import ModelError
from pipeline.models.backbones import IRSE50, WIDTHS, ResNet34, stage_ends
from pipeline.models.compact import CompactEncoder
from pipeline.models.stylegan2 import LATENT_DIM, EqualLinear

COARSE_ROWS = 3  # the first rows read the 16x16 map,
MIDDLE_ROWS = 7  # those up to here the 32x32 map, the others the 64x64 map (pSp, sec. 3.1)
HEAD_LEAK = 0.01


class StyleHead(nn.Module):
    """map2style: convolutions of stride 2 down to one position, then a linear layer (pSp)."""

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
    """Heads for a 16x16 map: four convolutions each."""
    return nn.ModuleList(StyleHead(widths[-1], 4) for _ in range(n_styles))


def pyramid_heads(n_styles: int, widths: Sequence[int]) -> nn.ModuleList:
    """Heads for maps of 16, 32 and 64 px: four, five and six convolutions."""
    depths = [4 if row < COARSE_ROWS else 5 if row < MIDDLE_ROWS else 6 for row in range(n_styles)]
    return nn.ModuleList(StyleHead(widths[-1], depth) for depth in depths)


def last_map_rows(heads: nn.ModuleList, features: Iterable[Tensor]) -> Tensor:
    """Every head reads the last of `features`; [n, n_styles, 512]."""
    *_, last = features
    return torch.stack([head(last) for head in heads], dim=1)


def pyramid_rows(
    heads: nn.ModuleList, features: Iterable[Tensor], to_middle: nn.Module, to_fine: nn.Module
) -> Tensor:
    """Heads read the level that their row belongs to; [n, n_styles, 512]."""
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
    """Row 0 is w, every other row an offset from it (e4e, sec. 4.1); [n, n_styles, 512]."""
    w, deltas = rows[:, :1], rows[:, 1:]
    return torch.cat([w, w + deltas], dim=1)


class BackboneEncoder(IRSE50):
    """ReStyle-pSp with the faces' body."""

    def __init__(self, input_channels: int, n_styles: int, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__(input_channels, widths)
        self.styles = last_map_heads(n_styles, widths)

    def forward(self, x: Tensor) -> Tensor:
        return last_map_rows(self.styles, self.features(x))


class ProgressiveBackboneEncoder(BackboneEncoder):
    """ReStyle-e4e with the faces' body."""

    def forward(self, x: Tensor) -> Tensor:
        return progressive(super().forward(x))


class ResNetBackboneEncoder(ResNet34):
    """ReStyle-pSp with the body of the other domains."""

    def __init__(self, input_channels: int, n_styles: int, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__(input_channels, widths)
        self.styles = last_map_heads(n_styles, widths)

    def forward(self, x: Tensor) -> Tensor:
        return last_map_rows(self.styles, self.features(x))


class ResNetProgressiveBackboneEncoder(ResNetBackboneEncoder):
    """ReStyle-e4e with the body of the other domains."""

    def forward(self, x: Tensor) -> Tensor:
        return progressive(super().forward(x))


class GradualStyleEncoder(IRSE50):
    """The encoder of the original pSp."""

    def __init__(self, input_channels: int, n_styles: int, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__(input_channels, widths)
        self.styles = pyramid_heads(n_styles, widths)
        self.latlayer1 = nn.Conv2d(widths[2], widths[3], 1)
        self.latlayer2 = nn.Conv2d(widths[1], widths[3], 1)

    def forward(self, x: Tensor) -> Tensor:
        return pyramid_rows(self.styles, self.features(x), self.latlayer1, self.latlayer2)


class Encoder4Editing(GradualStyleEncoder):
    """The encoder of the original e4e."""

    def forward(self, x: Tensor) -> Tensor:
        return progressive(super().forward(x))


class ResNetGradualStyleEncoder(ResNet34):
    """The original pSp's heads on the body of the other domains."""

    def __init__(self, input_channels: int, n_styles: int, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__(input_channels, widths)
        self.styles = pyramid_heads(n_styles, widths)
        self.latlayer1 = nn.Conv2d(widths[2], widths[3], 1)
        self.latlayer2 = nn.Conv2d(widths[1], widths[3], 1)

    def forward(self, x: Tensor) -> Tensor:
        return pyramid_rows(self.styles, self.features(x), self.latlayer1, self.latlayer2)


class NoEncoder(nn.Module):
    """Takes the place of the encoder in a model of a generator alone; it has no weights."""

    def __init__(self, input_channels: int, n_styles: int) -> None:
        super().__init__()
        self.input_channels, self.n_styles = input_channels, n_styles

    def forward(self, x: Tensor) -> Tensor:
        raise ModelError(f"a generator alone has no encoder to find codes of {len(x)} images with")


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
    """Constructor arguments of an official encoder, read off its weights' shapes (no prefix).

    Raises `KeyError` with the name of the weight that would tell, if it is missing.
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
    """The official types whose weights have names like `keys` (no prefix).

    Names tell the body and the pyramid, but not whether rows are offsets from the first.
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
