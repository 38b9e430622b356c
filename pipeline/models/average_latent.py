"""Estimate the average latent of a generator whose file has none, as the mean of mapped z codes."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import ModelError
from pipeline.models.stylegan2 import LATENT_DIM, Generator

CODES = 100_000  # the number that the official scripts use
SEED = 0
ESTIMATED = f"estimated from {CODES} mapped z codes, seed {SEED}"
_BATCH = 4096


@torch.no_grad()
def estimated_average(generator: Generator, source: str) -> Tensor:
    """Return the mean [512] of `CODES` z codes mapped to W, float32, on the CPU.

    Codes are drawn by numpy and mapped in float64, so that every machine computes the same values:
    they are part of the model's fingerprint. Takes 20 s on one core. Raises `ModelError` for a
    generator without a mapping network; `source` names its file.
    """
    if not any(key.startswith("style.") for key in generator.state_dict()):
        raise ModelError(
            f"{source}: its generator has no mapping network to estimate the average latent with"
        )
    mapping = copy.deepcopy(generator.style).cpu().double()
    draws = np.random.Generator(np.random.PCG64(SEED))
    total = torch.zeros(LATENT_DIM, dtype=torch.float64)
    for first in range(0, CODES, _BATCH):
        z = draws.standard_normal((min(_BATCH, CODES - first), LATENT_DIM))
        total += mapping(torch.from_numpy(z)).sum(dim=0)
    return (total / CODES).float()
