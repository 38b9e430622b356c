"""Tells a training that has diverged, before anything is written over its last good state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def gradient_norm(network: nn.Module) -> Tensor:
    """Length of all gradients of `network` as one vector, a scalar."""
    gradients = [weight.grad for weight in network.parameters() if weight.grad is not None]
    norm: Tensor = nn.utils.get_total_norm(gradients)
    return norm


def all_finite(state: Any) -> bool:
    """Whether every tensor in `state`, nested dictionaries and lists, is without NaN and inf."""
    if isinstance(state, Tensor):
        return bool(torch.isfinite(state).all())
    if isinstance(state, Mapping):
        return all(map(all_finite, state.values()))
    return all(map(all_finite, state)) if isinstance(state, (list, tuple)) else True
