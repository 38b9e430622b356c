"""The pass after a style layer's convolution as one Triton kernel: `pipeline.models.epilogue`.

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
def finish_kernel(
    y,  # [n, h, w, c], or blurred [n, h + 1, w + 1, c]
    x,  # [n, h, w, c], written if STYLED
    image,  # float32 [n, 3, h / POOL, w / POOL], written if RGB
    factor,  # float32 [n, c], rows `factor_stride` apart
    bias,  # float32 [c]
    noise,  # float32 [h, w]
    style,  # float32 [n, c], rows `style_stride` apart, read if STYLED
    rgb,  # float32 [n, 3, c], read if RGB
    factor_stride,
    style_stride,
    height,
    width,
    channels,
    BLURRED: tl.constexpr,
    STYLED: tl.constexpr,
    RGB: tl.constexpr,
    POOL: tl.constexpr,
    CHANNELS: tl.constexpr,  # `channels` rounded up to a power of two
    PIXELS: tl.constexpr,  # of one row
):
    """Finish POOL rows of PIXELS pixels of one face."""
    column = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    face = tl.program_id(2)
    c = tl.arange(0, CHANNELS)
    in_channels = c < channels
    in_row = column < width
    inside = in_row[:, None] & in_channels[None, :]
    factors = tl.load(factor + face * factor_stride + c, mask=in_channels, other=0.0)
    biases = tl.load(bias + c, mask=in_channels, other=0.0)
    if STYLED:
        styles = tl.load(style + face * style_stride + c, mask=in_channels, other=0.0)
    red = tl.zeros((PIXELS,), tl.float32)
    green = tl.zeros((PIXELS,), tl.float32)
    blue = tl.zeros((PIXELS,), tl.float32)
    for offset in tl.static_range(POOL):
        row = tl.program_id(1) * POOL + offset
        if BLURRED:
            value = tl.zeros((PIXELS, CHANNELS), tl.float32)
            for i in tl.static_range(4):
                source_row = row + i - 1 + column * 0
                for j in tl.static_range(4):
                    source = column + j - 1
                    valid = (source_row >= 0) & (source_row <= height)
                    valid = valid & (source >= 0) & (source <= width)
                    line = (face * (height + 1) + source_row).to(tl.int64) * (width + 1)
                    places = (line + source)[:, None] * channels + c[None, :]
                    taps = (3.0 if i == 1 or i == 2 else 1.0) * (3.0 if j == 1 or j == 2 else 1.0)
                    near = tl.load(
                        y + places, mask=valid[:, None] & in_channels[None, :], other=0.0
                    )
                    value += near.to(tl.float32) * (taps / 16.0)
        else:
            line = (face * height + row).to(tl.int64) * width
            places = (line + column)[:, None] * channels + c[None, :]
            value = tl.load(y + places, mask=inside, other=0.0).to(tl.float32)
        noises = tl.load(noise + row * width + column, mask=in_row, other=0.0)
        value = value * factors[None, :] + noises[:, None] + biases[None, :]
        value = tl.where(value > 0, value, value * 0.2)
        if RGB:
            weights = rgb + face * 3 * channels + c
            reds = tl.load(weights, mask=in_channels, other=0.0)
            greens = tl.load(weights + channels, mask=in_channels, other=0.0)
            blues = tl.load(weights + 2 * channels, mask=in_channels, other=0.0)
            red += tl.sum(value * reds[None, :], axis=1)
            green += tl.sum(value * greens[None, :], axis=1)
            blue += tl.sum(value * blues[None, :], axis=1)
        if STYLED:
            line = (face * height + row).to(tl.int64) * width
            places = (line + column)[:, None] * channels + c[None, :]
            tl.store(x + places, (value * styles[None, :]).to(x.dtype.element_ty), mask=inside)
    if RGB:
        averaged = tl.program_id(0) * (PIXELS // POOL) + tl.arange(0, PIXELS // POOL)
        wide = width // POOL
        plane = (height // POOL) * wide
        start = image + face * 3 * plane + tl.program_id(1) * wide + averaged
        area = 1.0 / (POOL * POOL)
        mask = averaged < wide
        tl.store(start, tl.sum(tl.reshape(red, (PIXELS // POOL, POOL)), axis=1) * area, mask=mask)
        tl.store(
            start + plane,
            tl.sum(tl.reshape(green, (PIXELS // POOL, POOL)), axis=1) * area,
            mask=mask,
        )
        tl.store(
            start + 2 * plane,
            tl.sum(tl.reshape(blue, (PIXELS // POOL, POOL)), axis=1) * area,
            mask=mask,
        )


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
        BLURRED=blurred,
        STYLED=x is not None,
        RGB=image is not None,
        POOL=factors.pool,
        CHANNELS=padded,
        PIXELS=pixels,
        num_warps=WARPS,
    )
    return x, image
