"""Fast forward pass of the encoders, without gradients: their bfloat16 twins.

The twin of an encoder computes the same function up to rounding; tests compare the two, in float64
too. Convolutions are channels-last. A batch normalisation that follows a convolution is folded into
its weights; one before a zero-padded convolution is not, since folding is wrong at the border.
Style heads that read the same map are one chain of grouped convolutions. Their linear layers and
the codes are float32.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from pipeline.models.encoders import (
    HEAD_LEAK,
    LEAK,
    CompactEncoder,
    ResidualBlock,
    ResNet34,
    ResNetBlock,
    RowHeads,
    StyleHead,
    progressive,
)
from pipeline.models.stylegan2 import LATENT_DIM


def fast_encoder(encoder: nn.Module, dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    """Return the twin of an encoder's present weights; float images to float codes.

    Raises `TypeError` for an encoder without a twin.
    """
    if isinstance(encoder, CompactEncoder):
        twin: nn.Module = _FastCompact(encoder, dtype)
    elif isinstance(encoder, RowHeads):
        twin = _FastOfficial(encoder, dtype)
    else:
        raise TypeError(f"{type(encoder).__name__} has no fast twin")
    return twin.requires_grad_(False).eval()


class _FastOfficial(nn.Module):
    """Twin of an encoder with an IR-SE50 or ResNet34 body and a style head per row."""

    def __init__(self, encoder: RowHeads, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype, self.is_progressive = dtype, encoder.is_progressive
        # Without a second copy of the heads, which are most of the weights.
        body = copy.deepcopy(encoder, {id(encoder.styles): None})
        self.body = cast("RowHeads", _cast(_folded(body), dtype))
        heads = cast("Sequence[StyleHead]", encoder.styles)
        self.heads = nn.ModuleList(
            _MergedHeads([heads[row] for row in rows], dtype)
            for _, rows in itertools.groupby(range(len(heads)), encoder.level_of)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [n, input_channels, h, w] to float32 codes [n, n_styles, 512]."""
        maps = self.body.maps(x.to(self.dtype, memory_format=torch.channels_last))
        # A small generator has no rows for the largest maps.
        rows = torch.cat([head(level) for head, level in zip(self.heads, maps, strict=False)], 1)
        return progressive(rows) if self.is_progressive else rows


class _MergedHeads(nn.Module):
    """Style heads of equal depth as one chain: the first convolution is shared, others grouped."""

    weight: Tensor  # [rows, 512, 512], of the linear layers, inputs first
    bias: Tensor  # [rows, 1, 512]

    def __init__(self, heads: Sequence[StyleHead], dtype: torch.dtype) -> None:
        super().__init__()
        self.rows = len(heads)
        layers = [[layer for layer in head.convs if isinstance(layer, nn.Conv2d)] for head in heads]
        self.convs = nn.ModuleList()
        for index, same in enumerate(zip(*layers, strict=True)):
            merged = nn.Conv2d(
                same[0].in_channels * (self.rows if index else 1),
                LATENT_DIM * self.rows,
                3,
                stride=2,
                padding=1,
                groups=self.rows if index else 1,
                device="meta",  # its own weights are not wanted
            )
            merged.weight = nn.Parameter(torch.cat([layer.weight.detach() for layer in same]))
            biases = [cast("Tensor", layer.bias).detach() for layer in same]
            merged.bias = nn.Parameter(torch.cat(biases))
            self.convs.append(_cast(merged, dtype))
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        linears = [head.linear for head in heads]
        weights = [(linear.weight.detach() * linear.scale).t() for linear in linears]
        offsets = [(linear.bias.detach() * linear.lr_mul)[None] for linear in linears]
        self.register_buffer("weight", torch.stack(weights).to(exact))
        self.register_buffer("bias", torch.stack(offsets).to(exact))

    def forward(self, x: Tensor) -> Tensor:  # [n, c, h, w] -> [n, rows, 512]
        for conv in self.convs:
            x = F.leaky_relu(conv(x), HEAD_LEAK)
        inputs = x.to(self.weight.dtype).view(-1, self.rows, LATENT_DIM).transpose(0, 1)
        return torch.baddbmm(self.bias, inputs, self.weight).transpose(0, 1)


class _FastCompact(nn.Module):
    """Twin of the demo model's encoder."""

    def __init__(self, encoder: CompactEncoder, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        twin = copy.deepcopy(encoder)
        for block in cast("Sequence[ResidualBlock]", twin.body):
            block.second.weight.data *= block.gain.detach()
            cast("Tensor", block.second.bias).data *= block.gain.detach()
        self.stem, self.body = _cast(twin.stem, dtype), _cast(twin.body, dtype)
        self.heads = twin.heads
        for convs in (self.heads.spread, self.heads.reduce, self.heads.gather):
            _cast(convs, dtype)

    def forward(self, pair: Tensor) -> Tensor:
        """Map [n, 6, s, s] to float32 codes [n, n_styles, 512]."""
        x = F.leaky_relu(self.stem(pair.to(self.dtype, memory_format=torch.channels_last)), LEAK)
        for block in cast("Sequence[ResidualBlock]", self.body):
            branch = block.second(F.leaky_relu_(block.first(x), LEAK))
            passed = F.avg_pool2d(x, block.stride) if block.stride > 1 else x
            x = F.leaky_relu_(branch.add_(block.shortcut(passed)), LEAK)
        heads = self.heads
        x = F.leaky_relu_(heads.spread(x), LEAK)
        for convolution in (*heads.reduce, heads.gather):
            x = F.leaky_relu_(convolution(x), LEAK)
        rows = x.reshape(len(x), heads.n_styles, -1).to(heads.matrix.dtype).transpose(0, 1)
        return torch.baddbmm(heads.bias[:, None], rows, heads.matrix).transpose(0, 1)


def _folded(body: nn.Module) -> nn.Module:
    """Fold every batch normalisation that follows a convolution into it, in place."""
    for module in list(body.modules()):
        if isinstance(module, nn.Sequential):
            for index, (conv, norm) in enumerate(itertools.pairwise(list(module))):
                if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    module[index], module[index + 1] = fuse_conv_bn_eval(conv, norm), nn.Identity()
        if isinstance(module, ResNetBlock):
            _fold(module, "conv2", "bn2")
        if isinstance(module, (ResNetBlock, ResNet34)):
            _fold(module, "conv1", "bn1")
    return body


def _fold(module: nn.Module, conv: str, norm: str) -> None:
    fused = fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm))
    module.set_submodule(conv, fused)
    module.set_submodule(norm, nn.Identity())


def _cast(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Cast `module` to `dtype`, channels-last; batch normalisations stay as exact as they are."""
    for each in module.modules():
        if not isinstance(each, nn.BatchNorm2d):
            for tensor in each.parameters(recurse=False):
                layout = torch.channels_last if tensor.dim() == 4 else torch.preserve_format
                tensor.data = tensor.data.to(dtype, memory_format=layout)
    return module
