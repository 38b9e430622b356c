"""How W+ codes move from step to step and how far they stray: numbers on codes alone.

A code near the average whose rows agree is easier to edit, one far off with unlike rows fits pixels
better (Tov et al., "Designing an encoder for StyleGAN image manipulation", 2021, sec. 3).
"""

from __future__ import annotations

import torch
from torch import Tensor


def _rms(values: Tensor) -> Tensor:
    """Root of the mean square over the last two axes."""
    return values.square().mean(dim=(-2, -1)).sqrt()


def residual_norm(
    w_plus: Tensor,  # [n, steps, n_styles, 512]
    start: Tensor,  # [n, n_styles, 512] or [n_styles, 512], the codes before the first step
) -> Tensor:
    """RMS of the residual that each step added, [n, steps].

    A root mean square over the n_styles × 512 values, so that sizes of generator compare.
    """
    before = start.expand_as(w_plus[:, 0])[:, None]
    return _rms(torch.diff(w_plus, dim=1, prepend=before))


def w_plus_variance(codes: Tensor) -> Tensor:
    """Variance between the rows of W+ codes [n, n_styles, 512], mean over the 512 values: [n].

    0 where all rows are one W code; the population variance, as rows are not drawn from anything.
    """
    return (codes - codes.mean(dim=1, keepdim=True)).square().mean(dim=(1, 2))


def w_avg_distance(
    codes: Tensor,  # [n, n_styles, 512]
    latent_avg: Tensor,  # [n_styles, 512]
) -> Tensor:
    """RMS distance [n] of W+ codes to the generator's average code."""
    return _rms(codes - latent_avg)
