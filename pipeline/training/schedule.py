"""What changes from batch to batch: the learning rate and the averaged weights."""

from __future__ import annotations

import math

import torch
from torch import nn


def learning_rate(peak: float, batches: int, progress: float, warm_up: int = 100) -> float:
    """`peak` after a linear warm-up over `warm_up` batches; cosine to zero over the second half.

    `progress` in [0, 1] is the share of the planned images seen.
    """
    warm = min(1.0, (batches + 1) / warm_up)
    late = min(1.0, max(0.0, 2 * progress - 1))
    return peak * warm * 0.5 * (1 + math.cos(math.pi * late))


@torch.no_grad()
def average_into(average: nn.Module, model: nn.Module, batches: int, horizon: int = 500) -> None:
    """Exponential moving average of weights over about `horizon` batches, shorter at the start.

    With a `horizon` of 0 the average is the model as it is. Buffers are copied.
    """
    keep = min(1 - 1 / horizon, (1 + batches) / (10 + batches)) if horizon else 0.0
    for weight, fast in zip(average.parameters(), model.parameters(), strict=True):
        weight.lerp_(fast, 1 - keep)
    for buffer, fast_buffer in zip(average.buffers(), model.buffers(), strict=True):
        buffer.copy_(fast_buffer)
