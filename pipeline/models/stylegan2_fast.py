"""Fast forward pass of the generator, without gradients: the bfloat16 twin of `Generator`.

It computes the same function as `Generator.reference` up to rounding; tests compare the two, in
float64 too. What does not depend on codes is done when the twin is made: weights are scaled, cast
and laid out channels-last, the squared weights of the demodulation are summed, noise maps and
biases are multiplied by their strength and by the activation's gain, which commutes with a leaky
ReLU. The styles of all layers are one batched product, their demodulation factors a second one.

A style layer is a convolution, and one pass over its result (`pipeline.models.epilogue`) that also
multiplies by the style of the next layer. Styles, demodulation and RGB are computed in float32.

An image is the sum of the RGB images of all levels, each enlarged; the encoder sees that image
averaged down. Both are linear, and separate into rows and columns: an averaged image is the sum of
`rows @ level @ columns` over the levels. So no image at full size is made between steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.epilogue import Factors, passes_of
from pipeline.models.stylegan2 import (
    BLUR_TAPS,
    GAIN,
    LATENT_DIM,
    SINGLE_CODE_FROM,
    Generator,
    ModulatedConv2d,
    StyledConv,
    ToRGB,
)

CHANNELS_LAST = torch.channels_last
# Faces of one pass: 64 of 1024 px make a map of 2^31 values, more than a 32-bit index counts.
MOST_AT_ONCE = 32
Size = tuple[int, int]


class FastGenerator(nn.Module):
    """Twin of a generator's present weights; later writes to those do not change it.

    `shape` is the visible part (height, width) of the square output, `size` that of pooled images.
    `dtype` is that of features and convolutions: bfloat16, or float64 to check the algebra.
    """

    constant: Tensor  # [1, c, 4, 4]
    rows: Tensor  # int64 [layers], the row of a code that each layer reads
    style_weight: Tensor  # [layers, 512, c], c the largest width; zeros beyond a layer's own
    style_bias: Tensor  # [layers, 1, c]
    energy: Tensor  # [convolutions, c, c], squared weights summed over the kernel, inputs first
    kernel: Tensor  # [3, 1, 4, 4], of the enlargement of an RGB image

    def __init__(
        self,
        generator: Generator,
        shape: Size,
        size: Size,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        super().__init__()
        self.size, self.n_styles, self.dtype = generator.size, generator.n_styles, dtype
        self.pool = pool_side(generator.size, shape, size)
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        convs = [generator.conv1, *cast("Sequence[StyledConv]", generator.convs)]
        rgbs = [generator.to_rgb1, *cast("Sequence[ToRGB]", generator.to_rgbs)]
        noises = generator.noises.buffers()
        self.convs = nn.ModuleList(
            _Conv(layer, noise, dtype, exact) for layer, noise in zip(convs, noises, strict=True)
        )
        self.biases = nn.Buffer(
            torch.stack([layer.bias.detach().view(3, 1, 1) for layer in rgbs]).to(exact)
        )
        self.averages = nn.ModuleList(
            _Average(generator.size, 4 << level, shape, size, exact) for level in range(len(rgbs))
        )
        layers = [layer.conv for layer in convs] + [layer.conv for layer in rgbs]
        self._add_styles(layers, len(convs), exact)
        self.register_buffer("constant", generator.input.input.detach().to(exact))
        taps = torch.tensor(BLUR_TAPS, dtype=exact) / 4
        self.register_buffer("kernel", torch.outer(taps, taps).repeat(3, 1, 1, 1))
        self.to(generator.input.input.device)
        self.requires_grad_(False).eval()

    def _add_styles(self, layers: list[ModulatedConv2d], convs: int, exact: torch.dtype) -> None:
        """Stack the modulations of all layers, and the energies of the convolutions."""
        width = max(max(layer.weight.shape[1:3]) for layer in layers)
        weight = torch.zeros(len(layers), LATENT_DIM, width, dtype=exact)
        bias = torch.zeros(len(layers), 1, width, dtype=exact)
        energy = torch.zeros(convs, width, width, dtype=exact)
        for index, layer in enumerate(layers):
            modulation, (outputs, inputs) = layer.modulation, layer.weight.shape[1:3]
            weight[index, :, :inputs] = (modulation.weight.detach() * modulation.scale).t()
            bias[index, 0, :inputs] = modulation.bias.detach() * modulation.lr_mul
            if index < convs:
                scaled = layer.weight[0].detach().to(exact) * layer.scale
                energy[index, :inputs, :outputs] = scaled.square().sum(dim=(2, 3)).t()
            else:  # the layers to RGB are not demodulated: their scale goes into the style
                weight[index] *= layer.scale
                bias[index] *= layer.scale
        self.rgb_weights = nn.ParameterList(
            layer.weight[0, :, :, 0, 0].detach().to(exact) for layer in layers[convs:]
        )
        self.register_buffer("style_weight", weight)
        self.register_buffer("style_bias", bias)
        self.register_buffer("energy", energy)
        self.register_buffer("rows", torch.tensor([*range(convs), *range(1, convs + 1, 2)]))

    def forward(self, w_plus: Tensor) -> Tensor:
        """Render `w_plus` [n, n_styles, 512] to float images [n, 3, size, size]."""
        return torch.cat([self._image(codes) for codes in self._batches(w_plus)])

    def pooled(self, w_plus: Tensor) -> Tensor:
        """Render the visible part of `w_plus`, averaged to `size`: float [n, 3, *size]."""
        return torch.cat([self._average(codes) for codes in self._batches(w_plus)])

    def _batches(self, w_plus: Tensor) -> Sequence[Tensor]:
        one_by_one = self.size >= SINGLE_CODE_FROM and w_plus.device.type == "cpu"
        batches: Sequence[Tensor] = w_plus.split(1 if one_by_one else MOST_AT_ONCE)
        return batches

    def _image(self, codes: Tensor) -> Tensor:
        image: Tensor | None = None
        for level in self._levels(codes, 1):
            image = level if image is None else self._enlarged(image).add_(level)
        return cast("Tensor", image)

    def _average(self, codes: Tensor) -> Tensor:
        levels = self._levels(codes, self.pool)
        total: Tensor = sum(
            average(level) for average, level in zip(self.averages, levels, strict=True)
        )
        return total

    def _enlarged(self, image: Tensor) -> Tensor:
        """Double the size of [n, 3, h, w] as `Upsample` does."""
        return F.conv_transpose2d(image, self.kernel, stride=2, padding=1, groups=3)

    def _levels(self, codes: Tensor, pool: int) -> Iterator[Tensor]:
        """Yield the RGB image of each level, [n, 3, s, s]; the last is averaged by `pool`."""
        passes, count = passes_of(codes.device), len(self.convs)
        inputs = codes.to(self.style_weight.dtype).transpose(0, 1)[self.rows]
        styles = torch.baddbmm(self.style_bias, inputs, self.style_weight)
        factors = torch.rsqrt(styles[:count].square() @ self.energy + 1e-8) * GAIN
        x: Tensor | None = self._constant(styles[0])
        for index, conv in enumerate(cast("Sequence[_Conv]", self.convs)):
            outputs, level, ends = conv.outputs, index // 2, index % 2 == 0
            last = index + 1 == count
            rgb = None
            if ends:
                style = styles[count + level, :, :outputs]
                rgb = self.rgb_weights[level] * style[:, None]
            made = Factors(
                factors[index, :, :outputs],
                conv.noise,
                conv.bias,
                None if last else styles[index + 1, :, :outputs],
                rgb,
                pool if last else 1,
            )
            image: Tensor | None
            if last:
                image = passes.last(cast("Tensor", x), conv.weight, made)
            else:
                x, image = passes.finish(conv(x), made, blurred=conv.upsample)
            if image is not None:
                yield image + self.biases[level]

    def _constant(self, style: Tensor) -> Tensor:
        """Return the constant input times the first layer's style, [n, c, 4, 4]."""
        scaled = self.constant * style[:, : self.constant.shape[1], None, None]
        return scaled.to(self.dtype, memory_format=torch.channels_last)


class _Conv(nn.Module):
    """Convolution of a style layer with scaled weights, and what is added to its result."""

    weight: Tensor  # [o, i, 3, 3], or of a transposed convolution [i, o, 3, 3]
    noise: Tensor  # [h, w], times its strength and the gain
    bias: Tensor  # [o], times the gain

    def __init__(
        self, layer: StyledConv, noise: Tensor, dtype: torch.dtype, exact: torch.dtype
    ) -> None:
        super().__init__()
        conv = layer.conv
        self.upsample, self.outputs = conv.upsample, conv.weight.shape[1]
        weight = conv.weight[0].detach().to(exact) * conv.scale
        weight = weight.transpose(0, 1) if conv.upsample else weight
        self.register_buffer("weight", weight.to(dtype).contiguous(memory_format=CHANNELS_LAST))
        strength = layer.noise.weight.detach().to(exact) * GAIN
        self.register_buffer("noise", noise[0, 0].to(exact) * strength)
        self.register_buffer("bias", layer.activate.bias.detach().to(exact) * GAIN)

    def forward(self, x: Tensor) -> Tensor:
        """Return [n, o, h, w] of [n, i, h, w]; with `upsample` [n, o, 2h + 1, 2w + 1]."""
        if self.upsample:
            return F.conv_transpose2d(x, self.weight, stride=2)
        return F.conv2d(x, self.weight, padding=1)


class _Average(nn.Module):
    """Part of one level's RGB image in the averaged output: `rows @ level @ columns`."""

    rows: Tensor | None
    columns: Tensor | None

    def __init__(self, side: int, level: int, shape: Size, size: Size, exact: torch.dtype) -> None:
        super().__init__()
        pool = pool_side(side, shape, size) if level == side else 1
        self.direct = level == side and (pool > 1 or shape == size)
        tops = [(side - length) // 2 // pool for length in shape]
        self.top, self.left = tops
        self.height, self.width = size
        rows, columns = (
            None if self.direct else averaging(side, level, visible, to).to(exact)
            for visible, to in zip(shape, size, strict=True)
        )
        self.register_buffer("rows", rows)
        self.register_buffer("columns", None if columns is None else columns.t().contiguous())

    def forward(self, level: Tensor) -> Tensor:
        """Return [n, 3, *size] of [n, 3, s, s]; the last level may be averaged already."""
        if self.rows is None or self.columns is None:
            rows = slice(self.top, self.top + self.height)
            return level[:, :, rows, self.left : self.left + self.width]
        return self.rows @ level @ self.columns


def pool_side(side: int, shape: Size, size: Size) -> int:
    """Return the side of the squares over which the output is averaged; 1 if there are none.

    These exist where the visible part is a whole multiple of `size` and begins on such a square.
    """
    pool = max(1, shape[0] // size[0])
    edges = [(side - length) // 2 for length in shape]
    whole = shape == (size[0] * pool, size[1] * pool) and not any(edge % pool for edge in edges)
    return pool if whole and side % pool == 0 else 1


def averaging(side: int, level: int, visible: int, size: int) -> Tensor:
    """Return the matrix [size, level] that enlarges a line of pixels, crops and averages it.

    A line of `level` pixels is enlarged to `side` as by `Upsample`, its `visible` middle is
    averaged to `size` pixels, or repeated where there are fewer. Float64.
    """
    taps = torch.tensor(BLUR_TAPS, dtype=torch.float64).view(1, 1, 4) / 4
    lines = torch.eye(level, dtype=torch.float64)[:, None]
    while lines.shape[2] < side:
        lines = F.conv_transpose1d(lines, taps, stride=2, padding=1)
    first = (side - visible) // 2
    return F.adaptive_avg_pool1d(lines[:, :, first : first + visible], size)[:, 0].t().contiguous()
