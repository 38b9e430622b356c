"""StyleGAN2 synthesis network, in the layout of the published PyTorch checkpoints.

Architecture: Karras et al., "Analyzing and Improving the Image Quality of StyleGAN" (CVPR 2020),
skip generator. Parameter names and shapes follow the rosinality layout that ReStyle checkpoints use
under `decoder.`, so that a state dict loads strictly. Channel widths and the output size are
arguments: small generators use the same class.

Modulation is applied to activations and demodulation to the convolution's output. This equals
modulating the weights (sec. 3.2), without one convolution per sample.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.stylegan2_cpu import render_one

LATENT_DIM = 512
BLUR_TAPS = (1.0, 3.0, 3.0, 1.0)
LEAK = 0.2
GAIN = math.sqrt(2)
# Output size from which a CPU renders codes one by one. Below it a batch, which shares the weights,
# is faster (64 px: batch 19, single 22 ms per code; 1024 px: batch 2.7, single 2.3 s).
SINGLE_CODE_FROM = 256


def n_styles_of(size: int) -> int:
    """Return the number of W+ rows of a generator of `size` pixels: 18 at 1024, 10 at 64."""
    return 2 * int(math.log2(size)) - 2


def normal(*shape: int, scaled: Callable[[Tensor], Tensor] = lambda drawn: drawn) -> Tensor:
    """Return standard normal numbers, `scaled`; on the meta device without drawing any.

    There, `randn`, products and quotients import PyTorch's compiler, for two seconds.
    """
    empty = torch.empty(shape)
    return empty if empty.is_meta else scaled(torch.randn(shape))


def blur_kernel() -> Tensor:
    """Return the binomial 4x4 resampling kernel, [4, 4], sum 4 (gain of 2x upsampling)."""
    return torch.tensor([[row * tap / 16.0 for tap in BLUR_TAPS] for row in BLUR_TAPS])


def depthwise(x: Tensor, kernel: Tensor) -> Tensor:
    """Convolve every channel of `x` [n, c, h, w] with one `kernel` [k, k], no padding."""
    channels = x.shape[1]
    weight = kernel.flip(0, 1).to(x.dtype)[None, None].expand(channels, 1, -1, -1)
    return F.conv2d(x, weight, groups=channels)


class EqualLinear(nn.Module):
    """Linear layer with equalised learning rate (Karras et al. 2018, sec. 4.1)."""

    def __init__(self, inputs: int, outputs: int, bias: float = 0.0, lr_mul: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(normal(outputs, inputs, scaled=lambda drawn: drawn / lr_mul))
        self.bias = nn.Parameter(torch.full((outputs,), bias))
        self.scale = lr_mul / math.sqrt(inputs)
        self.lr_mul = lr_mul

    def forward(self, x: Tensor) -> Tensor:  # [n, inputs] -> [n, outputs]
        return F.linear(x, self.weight * self.scale, self.bias * self.lr_mul)


class MappingLayer(EqualLinear):
    """Layer of the mapping network (Z to W): linear, leaky ReLU, gain."""

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(super().forward(x), LEAK) * GAIN


class PixelNorm(nn.Module):
    """Normalise each code to unit mean square."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + 1e-8)


class Blur(nn.Module):
    """Low-pass filter after a transposed convolution."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", blur_kernel())

    def forward(self, x: Tensor) -> Tensor:  # [n, c, 2h + 1, 2w + 1] -> [n, c, 2h, 2w]
        return depthwise(F.pad(x, (1, 1, 1, 1)), self.kernel)


class Upsample(nn.Module):
    """Double the size of the RGB skip image."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", blur_kernel())

    def forward(self, x: Tensor) -> Tensor:  # [n, c, h, w] -> [n, c, 2h, 2w]
        n, c, h, w = x.shape
        spread = x.new_zeros(n, c, h, 2, w, 2)
        spread[:, :, :, 0, :, 0] = x
        padded = F.pad(spread.view(n, c, 2 * h, 2 * w), (2, 1, 2, 1))
        return depthwise(padded, self.kernel)


class ModulatedConv2d(nn.Module):
    """Convolution whose input channels are scaled by a style (Karras et al. 2020, sec. 2.2)."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        demodulate: bool = True,
        upsample: bool = False,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(normal(1, outputs, inputs, kernel, kernel))
        self.modulation = EqualLinear(LATENT_DIM, inputs, bias=1.0)
        self.scale = 1.0 / math.sqrt(inputs * kernel * kernel)
        self.padding = kernel // 2
        self.demodulate = demodulate
        self.upsample = upsample
        if upsample:
            self.blur = Blur()

    def forward(self, x: Tensor, code: Tensor) -> Tensor:  # [n, i, h, w], [n, 512]
        style = self.modulation(code)  # [n, i]
        weight = self.weight[0] * self.scale  # [o, i, k, k]
        x = x * style[:, :, None, None]
        if self.upsample:
            x = self.blur(F.conv_transpose2d(x, weight.transpose(0, 1), stride=2))
        else:
            x = F.conv2d(x, weight, padding=self.padding)
        if self.demodulate:
            energy = style.square() @ weight.square().sum(dim=(2, 3)).t()  # [n, o]
            x = x * torch.rsqrt(energy + 1e-8)[:, :, None, None]
        return x


class NoiseInjection(nn.Module):
    """Add a fixed noise map, scaled by one learned number."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:  # [n, c, h, w] + [1, 1, h, w]
        return x + self.weight * noise


class BiasedLeakyReLU(nn.Module):
    """Per-channel bias, leaky ReLU of slope 0.2, gain sqrt(2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x + self.bias[:, None, None], LEAK) * GAIN


class StyledConv(nn.Module):
    """Modulated 3x3 convolution, noise, activation: one style layer."""

    def __init__(self, inputs: int, outputs: int, upsample: bool = False) -> None:
        super().__init__()
        self.conv = ModulatedConv2d(inputs, outputs, 3, upsample=upsample)
        self.noise = NoiseInjection()
        self.activate = BiasedLeakyReLU(outputs)

    def forward(self, x: Tensor, code: Tensor, noise: Tensor) -> Tensor:
        activated: Tensor = self.activate(self.noise(self.conv(x, code), noise))
        return activated


class ToRGB(nn.Module):
    """Convert features to RGB and add the upsampled image of the level below."""

    def __init__(self, inputs: int, upsample: bool = True) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, 3, 1, 1))
        self.conv = ModulatedConv2d(inputs, 3, 1, demodulate=False)
        if upsample:
            self.upsample = Upsample()

    def forward(self, x: Tensor, code: Tensor, skip: Tensor | None = None) -> Tensor:
        image: Tensor = self.conv(x, code) + self.bias
        return image if skip is None else image + self.upsample(skip)


class ConstantInput(nn.Module):
    """Learned 4x4 input of the synthesis network."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.input = nn.Parameter(normal(1, channels, 4, 4))


class Generator(nn.Module):
    """Map W+ codes to images.

    `channels` gives the feature width of each resolution from 4 px up to the output size, for
    example `{4: 256, 8: 256, 16: 192, 32: 96, 64: 48}`; its largest key is the output size.
    """

    def __init__(self, channels: Mapping[int, int], mapping_layers: int = 0) -> None:
        super().__init__()
        sizes = sorted(channels)
        self.size = sizes[-1]
        self.n_styles = n_styles_of(self.size)
        self.style = nn.Sequential(
            PixelNorm(),
            *(MappingLayer(LATENT_DIM, LATENT_DIM, lr_mul=0.01) for _ in range(mapping_layers)),
        )
        self.input = ConstantInput(channels[4])
        self.conv1 = StyledConv(channels[4], channels[4])
        self.to_rgb1 = ToRGB(channels[4], upsample=False)
        self.convs = nn.ModuleList()
        self.to_rgbs = nn.ModuleList()
        self.noises = nn.Module()
        self.noises.register_buffer("noise_0", normal(1, 1, 4, 4))
        for below, size in itertools.pairwise(sizes):
            self.convs.append(StyledConv(channels[below], channels[size], upsample=True))
            self.convs.append(StyledConv(channels[size], channels[size]))
            self.to_rgbs.append(ToRGB(channels[size]))
            for _ in range(2):
                index = len(list(self.noises.buffers()))
                self.noises.register_buffer(f"noise_{index}", normal(1, 1, size, size))

    def map_z(self, z: Tensor) -> Tensor:
        """Map Z codes [n, 512] to W codes [n, 512]."""
        w: Tensor = self.style(z)
        return w

    def forward(self, w_plus: Tensor) -> Tensor:
        """Render `w_plus` [n, n_styles, 512] to float images [n, 3, size, size], about [-1, 1].

        The noise maps are the checkpoint's fixed buffers: equal codes give equal images.
        """
        one_by_one = self.size >= SINGLE_CODE_FROM and w_plus.device.type == "cpu"
        if one_by_one and not torch.is_grad_enabled():
            images = [render_one(self, w_plus[index : index + 1]) for index in range(len(w_plus))]
            return torch.cat(images) if images else w_plus.new_empty(0, 3, self.size, self.size)
        return self.reference(w_plus)

    def reference(self, w_plus: Tensor) -> Tensor:
        """Compute `forward` in its plain form, with gradients and for whole batches."""
        noises: Sequence[Tensor] = list(self.noises.buffers())
        rows = w_plus.unbind(dim=1)
        x = self.input.input.expand(w_plus.shape[0], -1, -1, -1)
        x = self.conv1(x, rows[0], noises[0])
        image: Tensor = self.to_rgb1(x, rows[1])
        for level, to_rgb in enumerate(self.to_rgbs):
            first = 2 * level
            x = self.convs[first](x, rows[first + 1], noises[first + 1])
            x = self.convs[first + 1](x, rows[first + 2], noises[first + 2])
            image = to_rgb(x, rows[first + 3], image)
        return image
