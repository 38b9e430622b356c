"""Adam, and the Ranger that the published encoders were trained with."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from pipeline.choices import OptimiserName
from pipeline.errors import ConfigError


def make_optimiser(
    name: OptimiserName, parameters: Iterable[nn.Parameter], rate: float
) -> torch.optim.Optimizer:
    """Adam with betas 0.9 and 0.99, or Ranger with its author's defaults.

    Ranger is RAdam with Lookahead (every 6 steps, halfway) and centralised gradients. It comes
    from the package pytorch-optimizer; `ConfigError` says how to get it where it is missing.
    """
    if name == "adam":
        return torch.optim.Adam(parameters, lr=rate, betas=(0.9, 0.99))
    try:
        from pytorch_optimizer import Ranger
    except ImportError as error:
        raise ConfigError(
            "Ranger needs a package: pip install 'restyle-pipeline[train]', or --optimiser adam"
        ) from error
    # While the variance is not known the original steps down by momentum alone; without this flag
    # the package steps up (pytorch-optimizer 4.1).
    return Ranger(list(parameters), lr=rate, degenerated_to_sgd=True)
