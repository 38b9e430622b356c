"""Triton kernel of a style layer's epilogue (`pipeline.models.epilogue`).

A program finishes a run of pixels with all their channels, so that features are read and written
once, and the RGB image is a sum inside the program. Tests run it in Triton's interpreter against
the plain form, and compile it for sm_80 and sm_90; both need no GPU.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pipeline.models.epilogue import Factors, Finished

TILE = 2048  # features of a program's run of pixels
MOST_PIXELS, WARPS = 64, 4


@triton.jit
def load_blurred(
    y, face, row, column, c, in_channels, height, width, channels, shape: tl.constexpr
):
    """Return pixels of one row after the binomial filter, float32 of `shape` (pixels, channels)."""
    value = tl.zeros(shape, tl.float32)
    for i in tl.static_range(4):
        # As a vector: the interpreter has no scalar masks.
        source_row = row + i - 1 + column * 0
        for j in tl.static_range(4):
            source = column + j - 1
            valid = (source_row >= 0) & (source_row <= height) & (source >= 0) & (source <= width)
            line = (face * (height + 1) + source_row).to(tl.int64) * (width + 1)
            places = (line + source)[:, None] * channels + c[None, :]
            taps = (3.0 if i == 1 or i == 2 else 1.0) * (3.0 if j == 1 or j == 2 else 1.0)
            near = tl.load(y + places, mask=valid[:, None] & in_channels[None, :], other=0.0)
            value += near.to(tl.float32) * (taps / 16.0)
    return value


@triton.jit
def store_average(start, sums, first, width, pixels: tl.constexpr, pool: tl.constexpr):
    """Store the means of squares, of which `sums` are the sums of columns."""
    column = first + tl.arange(0, pixels // pool)
    total = tl.sum(tl.reshape(sums, (pixels // pool, pool)), axis=1)
    tl.store(start + column, total / (pool * pool), mask=column < width)


@triton.jit
def finish_kernel(
    y,  # [n, h, w, c], or if `blurred` [n, h + 1, w + 1, c]
    x,  # [n, h, w, c], written if `styled`
    image,  # float32 [n, 3, h / pool, w / pool], written if `mixed`
    factor,  # float32 [n, c], rows `factor_stride` apart
    bias,  # float32 [c]
    noise,  # float32 [h, w]
    style,  # float32 [n, c], rows `style_stride` apart, read if `styled`
    rgb,  # float32 [n, 3, c], read if `mixed`
    factor_stride,
    style_stride,
    height,
    width,
    channels,
    blurred: tl.constexpr,
    styled: tl.constexpr,
    mixed: tl.constexpr,
    pool: tl.constexpr,
    padded: tl.constexpr,  # `channels` rounded up to a power of two
    pixels: tl.constexpr,  # of one row
):
    """Finish `pool` rows of `pixels` pixels of one face."""
    column = tl.program_id(0) * pixels + tl.arange(0, pixels)
    face = tl.program_id(2)
    c = tl.arange(0, padded)
    in_channels, in_row = c < channels, column < width
    inside = in_row[:, None] & in_channels[None, :]
    factors = tl.load(factor + face * factor_stride + c, mask=in_channels, other=0.0)
    biases = tl.load(bias + c, mask=in_channels, other=0.0)
    red = tl.zeros((pixels,), tl.float32)
    green = tl.zeros((pixels,), tl.float32)
    blue = tl.zeros((pixels,), tl.float32)
    for offset in tl.static_range(pool):
        row = tl.program_id(1) * pool + offset
        line = (face * height + row).to(tl.int64) * width
        places = (line + column)[:, None] * channels + c[None, :]
        if blurred:
            value = load_blurred(
                y, face, row, column, c, in_channels, height, width, channels, (pixels, padded)
            )
        else:
            value = tl.load(y + places, mask=inside, other=0.0).to(tl.float32)
        noises = tl.load(noise + row * width + column, mask=in_row, other=0.0)
        value = value * factors[None, :] + noises[:, None] + biases[None, :]
        value = tl.where(value > 0, value, value * 0.2)
        if mixed:
            weights = rgb + face * 3 * channels + c
            reds = tl.load(weights, mask=in_channels, other=0.0)
            greens = tl.load(weights + channels, mask=in_channels, other=0.0)
            blues = tl.load(weights + 2 * channels, mask=in_channels, other=0.0)
            red += tl.sum(value * reds[None, :], axis=1)
            green += tl.sum(value * greens[None, :], axis=1)
            blue += tl.sum(value * blues[None, :], axis=1)
        if styled:
            styles = tl.load(style + face * style_stride + c, mask=in_channels, other=0.0)
            tl.store(x + places, (value * styles[None, :]).to(x.dtype.element_ty), mask=inside)
    if mixed:
        first, wide = tl.program_id(0) * (pixels // pool), width // pool
        plane = (height // pool) * wide
        start = image + face * 3 * plane + tl.program_id(1) * wide
        store_average(start, red, first, wide, pixels, pool)
        store_average(start + plane, green, first, wide, pixels, pool)
        store_average(start + 2 * plane, blue, first, wide, pixels, pool)


def pixels_of(channels: int) -> tuple[int, int]:
    """Return the padded channels, and the pixels of a program; both powers of two."""
    padded = 1 << (channels - 1).bit_length()
    return padded, max(4, min(MOST_PIXELS, TILE // padded))


def finish_on_gpu(y: Tensor, factors: Factors, *, blurred: bool) -> Finished:
    """Compute the pass in one kernel; see `pipeline.models.epilogue.finish`."""
    n, channels, height, width = y.shape
    height, width = height - blurred, width - blurred
    y = y.contiguous(memory_format=torch.channels_last)
    size = (n, channels, height, width)
    x, image = None, None
    if factors.style is not None:
        x = torch.empty(size, dtype=y.dtype, device=y.device, memory_format=torch.channels_last)
    if factors.rgb is not None:
        pooled = (n, 3, height // factors.pool, width // factors.pool)
        image = torch.empty(pooled, dtype=torch.float32, device=y.device)
    padded, pixels = pixels_of(channels)
    grid = (triton.cdiv(width, pixels), height // factors.pool, n)
    launch: Any = finish_kernel[grid]
    launch(
        y,
        y if x is None else x,
        factors.factor if image is None else image,
        factors.factor,
        factors.bias,
        factors.noise,
        factors.factor if factors.style is None else factors.style,
        factors.factor if factors.rgb is None else factors.rgb.contiguous(),
        factors.factor.stride(0),
        0 if factors.style is None else factors.style.stride(0),
        height,
        width,
        channels,
        blurred=blurred,
        styled=x is not None,
        mixed=image is not None,
        pool=factors.pool,
        padded=padded,
        pixels=pixels,
        num_warps=WARPS,
    )
    return x, image
