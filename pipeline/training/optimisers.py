"""Optimisers: Adam, and Ranger, which trained the published encoders.

Weights that start late, such as e4e's heads, must be updated as by a new optimiser. Ranger counts
steps per parameter group, so each late part has its own group.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from pipeline.choices import OptimiserName
from pipeline.errors import ConfigError


def make_optimiser(
    name: OptimiserName,
    parameters: list[nn.Parameter] | list[dict[str, Any]],  # or groups of them
    lr: float,
    beta2: float = 0.99,  # for Adam
) -> torch.optim.Optimizer:
    """Return Adam with betas 0.9 and `beta2`, or Ranger with its author's defaults.

    Ranger is RAdam with Lookahead (every 6 steps, halfway) and centralised gradients, from the
    package pytorch-optimizer. Raises `ConfigError` when that is not installed.
    """
    if name == "adam":
        return torch.optim.Adam(parameters, lr=lr, betas=(0.9, beta2))
    try:
        from pytorch_optimizer import Ranger
    except ImportError as error:
        raise ConfigError(
            "Ranger is not installed: pip install 'restyle-pipeline[train]', or --optimiser adam"
        ) from error
    # In the first steps, without a variance estimate, the original descends by momentum alone.
    # Without this flag the package (pytorch-optimizer 4.1) ascends.
    return Ranger(parameters, lr=lr, degenerated_to_sgd=True)


def groups_of(network: nn.Module, late: Sequence[nn.Module] = ()) -> list[dict[str, Any]]:
    """Return the trained weights of `network` in order, split into groups at each late part."""
    part_of = {
        id(weight): part for part, module in enumerate(late) for weight in module.parameters()
    }
    trained = [weight for weight in network.parameters() if weight.requires_grad]
    runs = itertools.groupby(trained, key=lambda weight: part_of.get(id(weight)))
    return [{"params": list(weights)} for _, weights in runs]


def step(optimiser: torch.optim.Optimizer) -> None:
    """Run one step; groups without any gradient have not started and keep no state."""
    optimiser.step()
    for group in optimiser.param_groups:
        if all(weight.grad is None for weight in group["params"]):
            if "step" in group:
                group["step"] = 0
            for weight in group["params"]:
                optimiser.state.pop(weight, None)


def restore(optimiser: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load a `state_dict`, also one with all weights in a single group."""
    stored, own = state["param_groups"], optimiser.param_groups
    sizes = [len(group["params"]) for group in own]
    if len(stored) == 1 and len(stored[0]["params"]) == sum(sizes):
        numbers = iter(stored[0]["params"])
        split = [{**stored[0], "params": list(itertools.islice(numbers, size))} for size in sizes]
        state = {**state, "param_groups": split}
    optimiser.load_state_dict(dict(state))
