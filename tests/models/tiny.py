"""Small models with the official layout; every weight is a function of its key and shape."""

from __future__ import annotations

import argparse
import functools
import zlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.models import Architecture, RestyleModel

CHANNELS = {4: 16, 8: 12}  # 8 px, 4 rows: every further row costs 28 MB of style head
ALL_LEVELS = {4: 16, 8: 16, 16: 12, 32: 8}  # 8 rows reach all three levels of a pyramid
WIDTHS = [16, 16, 32, 32]
UNIT = 3**0.5  # half-width of a uniform distribution of variance 1


@functools.cache
def filled(key: str, shape: tuple[int, ...]) -> Tensor:
    """Return a tensor that depends on the hash of its key and keeps activations near unit scale."""
    if key.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    if key.endswith(".kernel"):
        return torch.outer(torch.tensor([1.0, 3, 3, 1]), torch.tensor([1.0, 3, 3, 1])) / 16
    draws = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode())))
    values = (draws.random(shape, dtype=np.float32) * 2 - 1) * np.float32(UNIT)
    return torch.from_numpy(np.asarray(scale(key, shape) * values + offset(key, shape)))


def scale(key: str, shape: tuple[int, ...]) -> np.float32:
    """Return the standard deviation of a weight."""
    if key.endswith(("noise.weight", ".bias", "running_mean", "running_var")) or len(shape) == 1:
        return np.float32(0.1)
    if "to_rgb" in key and len(shape) == 5:
        return np.float32(0.2)
    if ".styles." in key and len(shape) == 4:
        return np.float32((2 / np.prod(shape[1:])) ** 0.5)
    if key.endswith("linear.weight"):
        return np.float32(0.2)
    # Equalised layers scale by themselves; half of unit gain keeps 24 residual blocks from growing.
    return np.float32(1 if key.startswith("decoder.") else 0.5 * np.prod(shape[1:]) ** -0.5)


def offset(key: str, shape: tuple[int, ...]) -> np.float32:
    """Return the mean of a weight: 1 for factors of a channel, otherwise 0."""
    multiplies = key.endswith(("running_var", "modulation.bias"))
    return np.float32(multiplies or (len(shape) == 1 and key.endswith(".weight")))


def tiny_checkpoint(
    encoder_type: str = "BackboneEncoder",
    *,
    input_channels: int = 6,
    channels: dict[int, int] = CHANNELS,
    **options: Any,
) -> dict[str, Any]:
    """Return an official dictionary of a small model; its tensors are shared, never modify them."""
    arguments = {
        "input_channels": input_channels,
        "n_styles": 2 * len(channels),
        "widths": WIDTHS,
    }
    with torch.device("meta"):
        model = RestyleModel(Architecture(encoder_type, arguments, channels, mapping_layers=2))
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    del shapes["latent_avg"]
    keys = {key.replace("generator.", "decoder.", 1): shape for key, shape in shapes.items()}
    opts = {
        "encoder_type": encoder_type,
        "dataset_type": "ffhq_encode",
        "output_size": max(channels),
        "input_nc": input_channels,
        "start_from_latent_avg": True,
    }
    return {
        "state_dict": {key: filled(key, shape) for key, shape in keys.items()},
        "latent_avg": filled("latent_avg", (2 * len(channels), 512)) * 0.4,
        "opts": argparse.Namespace(**(opts | options)),
    }


def portrait(height: int = 256, width: int = 256) -> Tensor:
    """Return a smooth picture with an edge, [1, 3, height, width] in [-1, 1]."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    red = np.sin(9 * x + 4 * y) * 0.8
    green = np.where((x - 0.5) ** 2 + (y - 0.45) ** 2 < 0.09, 0.7, -0.6)
    blue = np.cos(7 * x * y + 1) * 0.9
    return torch.from_numpy(np.stack([red, green, blue])[None].astype(np.float32))
