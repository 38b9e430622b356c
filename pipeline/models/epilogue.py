"""Epilogue of a style layer: all that follows its convolution, in one pass over the features.

Of a convolution's result `y` it computes `leaky_relu(y * factor + noise + bias)`, where `factor` is
the demodulation of each face. For the next layer the result is multiplied by that layer's style; to
RGB it is mixed with weights of each face, and averaged over squares of `pool` pixels. Where `y`
comes from a transposed convolution it is first filtered by the binomial 4x4 kernel. The gain of the
activation is contained in `factor`, `noise` and `bias`. Of the last layer RGB alone remains, so an
implementation may convolve in the same pass.

Features are channels-last in the twin's dtype; factors and sums are float32. There are three
implementations with one signature: plain PyTorch, slabs that stay in the cache of a CPU, and
`pipeline.models.epilogue_triton` for GPUs.
"""

from __future__ import annotations

import logging
from functools import cache, partial
from importlib.util import find_spec
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.models.stylegan2 import BLUR_TAPS, LEAK

CHANNELS_LAST = torch.channels_last
SLAB = 1 << 17  # features that a CPU finishes at a time: half of a core's L2 cache in float32

logger = logging.getLogger(__name__)


class Factors(NamedTuple):
    """Numbers of a style layer for n faces, float32 (or float64 in a check of the algebra)."""

    factor: Tensor  # [n, c], demodulation times the activation's gain
    noise: Tensor  # [h, w], times its strength and the gain
    bias: Tensor  # [c], times the gain
    style: Tensor | None = None  # [n, c], of the layer that reads the result; None: no layer does
    rgb: Tensor | None = None  # [n, 3, c], weights to RGB; None: no RGB image is made here
    pool: int = 1  # side of the squares over which the RGB image is averaged


Finished = tuple[Tensor | None, Tensor | None]  # features [n, c, h, w], RGB [n, 3, h/pool, w/pool]


class Epilogue(Protocol):
    """Implementation of the pass; may write into `y` [n, c, h, w] or, blurred, [n, c, h+1, w+1]."""

    def __call__(self, y: Tensor, factors: Factors, *, blurred: bool) -> Finished:
        """Return the features for the next layer, and the RGB image, of what there is."""
        ...


class LastLayer(Protocol):
    """Implementation of the last layer: a 3x3 convolution and its pass, of which RGB remains."""

    def __call__(self, x: Tensor, weight: Tensor, factors: Factors) -> Tensor:
        """Return RGB [n, 3, h/pool, w/pool] of `x` [n, i, h, w] and `weight` [o, i, 3, 3]."""
        ...


class Passes(NamedTuple):
    """Implementation of the pass, and of the whole last layer."""

    finish: Epilogue
    last: LastLayer


def passes_of(device: torch.device) -> Passes:
    """Return the fastest implementation on `device`."""
    if device.type == "cuda" and find_spec("triton"):
        return _on_gpu(device)
    return _separate(finish_in_slabs if device.type == "cpu" else finish)


def _separate(epilogue: Epilogue) -> Passes:
    return Passes(epilogue, partial(convolve_and_finish, epilogue))


@cache
def _on_gpu(device: torch.device) -> Passes:
    """Return the Triton kernels if they compile and give the plain pass on `device`."""
    try:
        from pipeline.models.epilogue_triton import PASSES

        check_passes(PASSES, device)
    except Exception as error:  # noqa: BLE001 - no C compiler, another Triton: many kinds
        logger.warning("no Triton kernel, which is slower: %s", error)
        return _separate(finish)
    return PASSES


def convolve_and_finish(epilogue: Epilogue, x: Tensor, weight: Tensor, factors: Factors) -> Tensor:
    """Compute the last layer as a convolution and `epilogue`; see `LastLayer`."""
    _, image = epilogue(F.conv2d(x, weight, padding=1), factors, blurred=False)
    if image is None:
        raise ValueError("the last layer needs weights to RGB")
    return image


def check_passes(passes: Passes, device: torch.device) -> None:
    """Raise `ValueError` if `passes` do not give the plain form for four kinds of layers."""
    check_last(passes.last, device)
    check_finish(passes.finish, device)


def check_last(last: LastLayer, device: torch.device) -> None:
    """Raise `ValueError` if `last` does not give the image of the plain form in float32."""
    made = torch.Generator().manual_seed(0)
    n, c, side = 2, 24, 16
    # Triton's interpreter multiplies the bits of bfloat16 as integers.
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    x, weight = (
        torch.randn(shape, generator=made).to(device, dtype, memory_format=CHANNELS_LAST)
        for shape in ((n, c, side, side), (c, c, 3, 3))
    )
    numbers = torch.randn(n, 3, c, generator=made).to(device) / c
    noise = torch.randn(side, side, generator=made).to(device)
    for pool in (1, 4):
        factors = Factors(numbers[:, 0], noise, numbers[0, 1], None, numbers, pool)
        expected = convolve_and_finish(finish, x.float(), weight.float(), factors)
        if not torch.allclose(last(x, weight, factors), expected, rtol=1e-3, atol=1e-3):
            raise ValueError("its last layer gives another image than the plain form")


def check_finish(epilogue: Epilogue, device: torch.device) -> None:
    """Raise `ValueError` if `epilogue` does not give the plain pass for three kinds of layers."""
    made = torch.Generator().manual_seed(0)
    n, c, side = 2, 24, 16
    for blurred, styled, pool in ((True, True, 1), (False, True, 1), (False, False, 4)):
        shape = (n, c, side + blurred, side + blurred)
        y = torch.randn(shape, generator=made).to(device).contiguous(memory_format=CHANNELS_LAST)
        numbers = torch.randn(n, 3, c, generator=made).to(device)
        noise = torch.randn(side, side, generator=made).to(device)
        factors = Factors(
            numbers[:, 0], noise, numbers[0, 1], numbers[:, 2] if styled else None, numbers, pool
        )
        expected, result = (
            each(y.clone(), factors, blurred=blurred) for each in (finish, epilogue)
        )
        for left, right in zip(expected, result, strict=True):
            if left is not None and not (
                right is not None and torch.allclose(right, left, rtol=1e-3, atol=1e-3)
            ):
                raise ValueError("it gives other features than the plain form")


def finish(y: Tensor, factors: Factors, *, blurred: bool) -> Finished:
    """Compute the pass in plain PyTorch: the reference of the other implementations."""
    dtype, exact = y.dtype, factors.factor.dtype
    x = (blur(y) if blurred else y).to(exact)
    offset = factors.noise + factors.bias[:, None, None]
    x = F.leaky_relu(torch.addcmul(offset, x, factors.factor[:, :, None, None]), LEAK)
    image = None
    if factors.rgb is not None:
        image = to_rgb(F.avg_pool2d(x, factors.pool) if factors.pool > 1 else x, factors.rgb)
    if factors.style is None:
        return None, image
    scaled = x * factors.style[:, :, None, None]
    return scaled.to(dtype, memory_format=torch.channels_last), image


def finish_in_slabs(y: Tensor, factors: Factors, *, blurred: bool) -> Finished:
    """Compute the pass on a CPU in place, slab by slab, while a slab is in the cache."""
    x = (blur(y) if blurred else y).contiguous(memory_format=torch.channels_last)
    n, c, h, w = x.shape
    mixes = factors.rgb is not None and factors.pool == 1
    image = x.new_empty(n, h * w, 3, dtype=factors.factor.dtype) if mixes else None
    noise = factors.noise.reshape(-1, 1)
    rows = max(1, SLAB // c)
    for face, pixels in enumerate(x.permute(0, 2, 3, 1).reshape(n, h * w, c)):
        for first in range(0, h * w, rows):
            part = slice(first, first + rows)
            slab = pixels[part].to(factors.factor.dtype)
            slab.mul_(factors.factor[face]).add_(noise[part]).add_(factors.bias)
            F.leaky_relu_(slab, LEAK)
            if image is not None and factors.rgb is not None:
                torch.mm(slab, factors.rgb[face].t(), out=image[face, part])
            if factors.style is not None:
                slab.mul_(factors.style[face])
            pixels[part] = slab
    if image is not None:
        return x, image.view(n, h, w, 3).permute(0, 3, 1, 2)
    if factors.rgb is None:
        return x, None
    return x, to_rgb(F.avg_pool2d(x, factors.pool).to(factors.rgb.dtype), factors.rgb)


def blur(y: Tensor) -> Tensor:
    """Filter [n, c, h + 1, w + 1] by the binomial kernel to [n, c, h, w], in the dtype of `y`."""
    kernel = _blur_kernel(y.dtype, y.device).expand(y.shape[1], 1, 4, 4)
    return F.conv2d(y, kernel, padding=1, groups=y.shape[1])


@cache
def _blur_kernel(dtype: torch.dtype, device: torch.device) -> Tensor:
    taps = torch.tensor(BLUR_TAPS, dtype=dtype, device=device)
    return torch.outer(taps, taps) / 16


def to_rgb(x: Tensor, weight: Tensor) -> Tensor:
    """Mix the channels of [n, c, h, w] by [n, 3, c] to [n, 3, h, w]."""
    n, c, h, w = x.shape
    mixed = x.permute(0, 2, 3, 1).reshape(n, h * w, c) @ weight.transpose(1, 2)
    return mixed.view(n, h, w, 3).permute(0, 3, 1, 2)
