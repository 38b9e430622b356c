"""Statistics of W+ codes: residuals of steps, variance of rows, distance to the average.

Codes near the average with similar rows are easier to edit; other codes fit pixels better (Tov et
al., "Designing an encoder for StyleGAN image manipulation", 2021, sec. 3).
"""

from __future__ import annotations

import torch
from torch import Tensor


def _rms(values: Tensor) -> Tensor:
    """Return the root mean square over the last two axes."""
    return values.square().mean(dim=(-2, -1)).sqrt()


def residual_norm(
    w_plus: Tensor,  # [n, steps, n_styles, 512]
    start: Tensor,  # [n, n_styles, 512] or [n_styles, 512], the codes before the first step
) -> Tensor:
    """Return the RMS of the residual of each step, [n, steps].

    The mean over the n_styles × 512 values makes generators of different sizes comparable.
    """
    before = start.expand_as(w_plus[:, 0])[:, None]
    return _rms(torch.diff(w_plus, dim=1, prepend=before))


def w_plus_variance(codes: Tensor) -> Tensor:
    """Return the variance [n] between rows of W+ codes [n, n_styles, 512], mean over 512 values.

    0 if all rows are one W code. Population variance: the rows are not a sample.
    """
    return (codes - codes.mean(dim=1, keepdim=True)).square().mean(dim=(1, 2))


def w_avg_distance(
    codes: Tensor,  # [n, n_styles, 512]
    latent_avg: Tensor,  # [n_styles, 512]
) -> Tensor:
    """Return the RMS distance [n] of W+ codes to the generator's average code."""
    return _rms(codes - latent_avg)
