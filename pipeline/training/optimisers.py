"""Adam, and the Ranger that the published encoders were trained with.

Weights that start late, as e4e's heads do, are to be moved as a fresh optimiser moves them. Ranger
counts the steps of a group, not of a weight, and each such part is a group of its own.
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
    rate: float,
    beta2: float = 0.99,  # of Adam
) -> torch.optim.Optimizer:
    """Adam with betas 0.9 and `beta2`, or Ranger with its author's defaults.

    Ranger is RAdam with Lookahead (every 6 steps, halfway) and centralised gradients. It comes
    from the package pytorch-optimizer; `ConfigError` says how to get it where it is missing.
    """
    if name == "adam":
        return torch.optim.Adam(parameters, lr=rate, betas=(0.9, beta2))
    try:
        from pytorch_optimizer import Ranger
    except ImportError as error:
        raise ConfigError(
            "Ranger needs a package: pip install 'restyle-pipeline[train]', or --optimiser adam"
        ) from error
    # While the variance is not known the original steps down by momentum alone; without this flag
    # the package steps up (pytorch-optimizer 4.1).
    return Ranger(parameters, lr=rate, degenerated_to_sgd=True)


def groups_of(network: nn.Module, late: Sequence[nn.Module] = ()) -> list[dict[str, Any]]:
    """The weights of `network` that are trained, in their order, cut around each part in `late`."""
    part_of = {
        id(weight): part for part, module in enumerate(late) for weight in module.parameters()
    }
    trained = [weight for weight in network.parameters() if weight.requires_grad]
    runs = itertools.groupby(trained, key=lambda weight: part_of.get(id(weight)))
    return [{"params": list(weights)} for _, weights in runs]


def step(optimiser: torch.optim.Optimizer) -> None:
    """One step; a group without any gradient has not started, and has no state."""
    optimiser.step()
    for group in optimiser.param_groups:
        if all(weight.grad is None for weight in group["params"]):
            if "step" in group:
                group["step"] = 0
            for weight in group["params"]:
                optimiser.state.pop(weight, None)


def restore(optimiser: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Take back a `state_dict`, also one with all weights in a single group."""
    known, own = state["param_groups"], optimiser.param_groups
    sizes = [len(group["params"]) for group in own]
    if len(known) == 1 and len(known[0]["params"]) == sum(sizes):
        numbers = iter(known[0]["params"])
        cut = [{**known[0], "params": list(itertools.islice(numbers, size))} for size in sizes]
        state = {**state, "param_groups": cut}
    optimiser.load_state_dict(dict(state))
