"""Triton kernels of a style layer's epilogue (`pipeline.models.epilogue`).

A program finishes a run of pixels with all their channels, so that features are read and written
once, and the RGB image is a sum inside the program. The last layer's program also convolves, as
nine products: its features are never stored. Tests run the kernels in Triton's interpreter against
the plain form, and compile them for sm_80 and sm_90; both need no GPU.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pipeline.models.epilogue import Factors, Finished, Passes, convolve_and_finish

TILE = 2048  # features of a program's run of pixels
MOST_PIXELS, WARPS = 64, 4
# Of a last layer that convolves here: with 64 its sums and weights fill all registers.
MOST_CHANNELS = 32


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
def activated(value, factors, biases, noise, row, column, width):
    """Return the activation of `value` (pixels of one row, channels)."""
    noises = tl.load(noise + row * width + column, mask=column < width, other=0.0)
    value = value * factors[None, :] + noises[:, None] + biases[None, :]
    return tl.where(value > 0, value, value * 0.2)


@triton.jit
def mixed_to_rgb(value, rgb, face, c, in_channels, channels):
    """Return red, green and blue of `value` (pixels, channels)."""
    weights = rgb + face * 3 * channels + c
    reds = tl.load(weights, mask=in_channels, other=0.0)
    greens = tl.load(weights + channels, mask=in_channels, other=0.0)
    blues = tl.load(weights + 2 * channels, mask=in_channels, other=0.0)
    red = tl.sum(value * reds[None, :], axis=1)
    green = tl.sum(value * greens[None, :], axis=1)
    return red, green, tl.sum(value * blues[None, :], axis=1)


@triton.jit
def store_averages(
    image, face, red, green, blue, height, width, pixels: tl.constexpr, pool: tl.constexpr
):
    """Store the means of a program's squares, given the sums of their columns."""
    wide = width // pool
    plane = (height // pool) * wide
    start = image + face * 3 * plane + tl.program_id(1) * wide
    column = tl.program_id(0) * (pixels // pool) + tl.arange(0, pixels // pool)
    shape: tl.constexpr = (pixels // pool, pool)
    scale = 1.0 / (pool * pool)
    inside = column < wide
    tl.store(start + column, tl.sum(tl.reshape(red, shape), axis=1) * scale, mask=inside)
    start += plane
    tl.store(start + column, tl.sum(tl.reshape(green, shape), axis=1) * scale, mask=inside)
    start += plane
    tl.store(start + column, tl.sum(tl.reshape(blue, shape), axis=1) * scale, mask=inside)


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
        value = activated(value, factors, biases, noise, row, column, width)
        if mixed:
            r, g, b = mixed_to_rgb(value, rgb, face, c, in_channels, channels)
            red, green, blue = red + r, green + g, blue + b
        if styled:
            styles = tl.load(style + face * style_stride + c, mask=in_channels, other=0.0)
            tl.store(x + places, (value * styles[None, :]).to(x.dtype.element_ty), mask=inside)
    if mixed:
        store_averages(image, face, red, green, blue, height, width, pixels, pool)


@triton.jit
def last_kernel(
    x,  # [n, h, w, i]
    weight,  # [o, 3, 3, i]
    image,  # float32 [n, 3, h / pool, w / pool], written
    factor,  # float32 [n, o], rows `factor_stride` apart
    bias,  # float32 [o]
    noise,  # float32 [h, w]
    rgb,  # float32 [n, 3, o]
    factor_stride,
    height,
    width,
    inputs,
    outputs,
    pool: tl.constexpr,
    wide_inputs: tl.constexpr,  # `inputs` rounded up to a power of two, at least 16
    wide_outputs: tl.constexpr,
    pixels: tl.constexpr,  # of one row
):
    """Convolve `pool` rows of `pixels` pixels of one face, and mix and average them to RGB."""
    column = tl.program_id(0) * pixels + tl.arange(0, pixels)
    face = tl.program_id(2)
    i, o = tl.arange(0, wide_inputs), tl.arange(0, wide_outputs)
    in_channels = o < outputs
    factors = tl.load(factor + face * factor_stride + o, mask=in_channels, other=0.0)
    biases = tl.load(bias + o, mask=in_channels, other=0.0)
    red = tl.zeros((pixels,), tl.float32)
    green = tl.zeros((pixels,), tl.float32)
    blue = tl.zeros((pixels,), tl.float32)
    for offset in tl.range(pool, num_stages=1):
        row = tl.program_id(1) * pool + offset
        value = tl.zeros((pixels, wide_outputs), tl.float32)
        for tap in tl.static_range(9):
            # As a vector: the interpreter has no scalar masks.
            source_row = row + tap // 3 - 1 + column * 0
            source = column + tap % 3 - 1
            valid = (source_row >= 0) & (source_row < height) & (source >= 0) & (source < width)
            places = ((face * height + source_row).to(tl.int64) * width + source) * inputs
            near = tl.load(
                x + places[:, None] + i[None, :],
                mask=valid[:, None] & (i < inputs)[None, :],
                other=0.0,
            )
            taps = tl.load(
                weight + (o[None, :] * 9 + tap) * inputs + i[:, None],
                mask=in_channels[None, :] & (i < inputs)[:, None],
                other=0.0,
            )
            value = tl.dot(near, taps, value)
        value = activated(value, factors, biases, noise, row, column, width)
        r, g, b = mixed_to_rgb(value, rgb, face, o, in_channels, outputs)
        red, green, blue = red + r, green + g, blue + b
    store_averages(image, face, red, green, blue, height, width, pixels, pool)


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


def last_on_gpu(x: Tensor, weight: Tensor, factors: Factors) -> Tensor:
    """Convolve and finish the last layer in one kernel; see `Passes.last`."""
    outputs, inputs = weight.shape[:2]
    if max(outputs, inputs) > MOST_CHANNELS or factors.rgb is None:
        return convolve_and_finish(finish_on_gpu, x, weight, factors)
    n, _, height, width = x.shape
    x = x.contiguous(memory_format=torch.channels_last)
    pooled = (n, 3, height // factors.pool, width // factors.pool)
    image = torch.empty(pooled, dtype=torch.float32, device=x.device)
    launch: Any = last_kernel[(triton.cdiv(width, MOST_PIXELS), height // factors.pool, n)]
    launch(
        x,
        weight.contiguous(memory_format=torch.channels_last),
        image,
        factors.factor,
        factors.bias,
        factors.noise,
        factors.rgb.contiguous(),
        factors.factor.stride(0),
        height,
        width,
        inputs,
        outputs,
        pool=factors.pool,
        wide_inputs=max(16, pixels_of(inputs)[0]),
        wide_outputs=max(16, pixels_of(outputs)[0]),
        pixels=MOST_PIXELS,
        num_warps=WARPS,
    )
    return image


PASSES = Passes(finish_on_gpu, last_on_gpu)
