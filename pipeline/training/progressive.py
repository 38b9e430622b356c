"""e4e's progressive training: first one w for all rows, then an offset for one row after another.

Tov et al. 2021 (arXiv 2102.02766), sec. 4.1: codes stay near W, where edits work, and leave it row
by row. Here what a step adds is held to that; sums of such steps are such codes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Stages:
    """From which image on each further row has an offset of its own."""

    start: int  # images with a single w
    every: int  # images for each row after that

    def at(self, images: int, n_styles: int) -> int:
        """How many rows have an offset after `images`, 0 to n_styles - 1."""
        if images < self.start:
            return 0
        return min(n_styles - 1, 1 + (images - self.start) // self.every)


def staged(residual: Tensor, stage: int) -> Tensor:
    """`residual` [n, rows, 512] whose rows after `stage` are its first row."""
    first, own = residual[:, :1], residual[:, : stage + 1]
    return torch.cat([own, first.expand(-1, residual.shape[1] - stage - 1, -1)], dim=1)


def late_heads(encoder: nn.Module) -> list[nn.Module]:
    """The heads behind rows 1 and on, of an encoder that has one a row; else none."""
    heads = getattr(encoder, "styles", ())
    return list(heads)[1:]


def leave_out(heads: Iterable[nn.Module]) -> None:
    """Take the gradients of `heads` away, which are 0 where `staged` drops what they give.

    To an optimiser a gradient of 0 is a step: it would count these, and hold the variance for 0.
    """
    for head in heads:
        for weight in head.parameters():
            weight.grad = None


def delta_norms(codes: Tensor, stage: int) -> Tensor:
    """Delta regularisation: the mean length of each row's offset from row 0, added over the rows.

    `codes` [n, rows, 512]; a scalar, 0 at stage 0 (e4e, eq. 2).
    """
    offsets = codes[:, 1 : stage + 1] - codes[:, :1]
    total: Tensor = torch.linalg.vector_norm(offsets, dim=2).mean(dim=0).sum()
    return total


def w_norm(codes: Tensor, latent_avg: Tensor) -> Tensor:
    """Mean distance of codes [n, rows, 512] from the average (pSp, eq. 4)."""
    mean: Tensor = torch.linalg.vector_norm((codes - latent_avg).flatten(1), dim=1).mean()
    return mean
