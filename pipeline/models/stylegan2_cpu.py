"""Forward pass of the generator for one code on a CPU, without gradients.

Computes the same as `Generator.reference`; tests compare the two. The time of a 1024 px image is
spent on convolutions and then on memory: a map of 32 x 1024 x 1024 is 128 MB, and each pass over it
costs 8 % of a convolution. Therefore

* style, demodulation and the activation's gain are folded into the convolution's weight, which is
  small where maps are large. This is Karras et al. 2020, sec. 3.2 with a batch of one;
* the bias is added by the convolution, or by the blur after a transposed one, which also pads;
* noise and leaky ReLU run in place, slab by slab, while the slab is in the cache.

A leaky ReLU commutes with a positive factor, so the gain can be folded in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from pipeline.models.stylegan2 import Generator, ModulatedConv2d, StyledConv, ToRGB

LEAK = 0.2
GAIN = 2**0.5
SLAB = 1 << 18  # elements, 1 MB: with the noise map half of a core's L2 cache


def render_one(generator: Generator, w_plus: Tensor) -> Tensor:
    """Return `generator(w_plus)` for one code, [1, n_styles, 512] to [1, 3, size, size]."""
    noises = list(generator.noises.buffers())
    rows = w_plus[0].unbind(dim=0)
    x = _styled(generator.conv1, generator.input.input, rows[0], noises[0])
    image = _rgb(generator.to_rgb1, x, rows[1])
    convs = cast("Sequence[StyledConv]", generator.convs)
    for level, to_rgb in enumerate(cast("Sequence[ToRGB]", generator.to_rgbs)):
        first = 2 * level
        x = _styled(convs[first], x, rows[first + 1], noises[first + 1])
        x = _styled(convs[first + 1], x, rows[first + 2], noises[first + 2])
        image = to_rgb.upsample(image).add_(_rgb(to_rgb, x, rows[first + 3]))
    return image


def _styled(layer: StyledConv, x: Tensor, row: Tensor, noise: Tensor) -> Tensor:
    """Apply one style layer to [1, i, h, w] with a row [512]; the result is a new tensor."""
    conv = layer.conv
    bias = layer.activate.bias * GAIN
    if conv.upsample:
        y = _blurred(conv, _convolved(conv, x, row, None), bias)
    else:
        y = _convolved(conv, x, row, bias)
    _activate_(y[0], noise[0] * (layer.noise.weight * GAIN))
    return y


def _convolved(conv: ModulatedConv2d, x: Tensor, row: Tensor, bias: Tensor | None) -> Tensor:
    """Return the modulated, demodulated convolution times the gain, plus `bias` [o] if given."""
    style = conv.modulation(row) * conv.scale  # [i]
    factor = torch.rsqrt(_energy(conv) @ style.square() + 1e-8) * GAIN  # [o]
    weight = conv.weight[0]
    if weight.numel() < x.numel():
        weight = weight * (factor[:, None] * style)[:, :, None, None]
        return _convolve(conv, x, weight, bias)
    y = _convolve(conv, x * style[:, None, None], weight, None)
    y.mul_(factor[:, None, None])
    return y if bias is None else y.add_(bias[:, None, None])


def _convolve(conv: ModulatedConv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if conv.upsample:
        return F.conv_transpose2d(x, weight.transpose(0, 1), bias, stride=2)
    return F.conv2d(x, weight, bias, padding=conv.padding)


def _blurred(conv: ModulatedConv2d, x: Tensor, bias: Tensor) -> Tensor:
    """Apply the low-pass filter and add `bias` [c]; [1, c, 2h + 1, 2w + 1] to [1, c, 2h, 2w]."""
    channels = x.shape[1]
    kernel = conv.blur.kernel.flip(0, 1).expand(channels, 1, -1, -1)
    return F.conv2d(x, kernel, bias, padding=1, groups=channels)


def _activate_(x: Tensor, noise: Tensor) -> None:
    """Add noise [1, h, w] and apply leaky ReLU, in place on [c, h, w]."""
    for slab in x.split(max(1, SLAB // noise.numel())):
        slab.add_(noise)
        F.leaky_relu_(slab, LEAK)


def _rgb(layer: ToRGB, x: Tensor, row: Tensor) -> Tensor:
    """Return the layer's RGB image, [1, 3, h, w], before the level below is added."""
    conv = layer.conv
    weight = conv.weight[0] * (conv.modulation(row) * conv.scale)[:, None, None]
    return F.conv2d(x, weight, layer.bias.view(3))


_energies: WeakKeyDictionary[ModulatedConv2d, tuple[tuple[int, int], Tensor]] = WeakKeyDictionary()


def _energy(conv: ModulatedConv2d) -> Tensor:
    """Return squared weights summed over the kernel, [o, i]; cached while the weight is unchanged.

    PyTorch does not count writes through `weight.data`: after one, call `load_state_dict` or make
    any counted write. Weights made in `torch.inference_mode`, which counts no writes, are not
    cached.
    """
    weight = conv.weight
    if weight.is_inference():
        return weight[0].square().sum(dim=(2, 3))
    version = (weight.data_ptr(), weight._version)
    cached = _energies.get(conv)
    if cached is None or cached[0] != version:
        cached = (version, weight[0].square().sum(dim=(2, 3)))
        _energies[conv] = cached
    return cached[1]
