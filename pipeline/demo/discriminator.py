"""Image discriminator for fitting the demo generator, with the losses of both sides.

A light adversarial term sharpens what a distance to the target leaves blurred. The network is a
narrow residual discriminator (Karras et al. 2020, sec. 4.1) with a channel of minibatch deviation
(Karras et al. 2018, sec. 3), the loss non-saturating with lazy R1 (Karras et al. 2020, sec. 3.1).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.stylegan2 import GAIN, LEAK
from pipeline.training.distributed import Group
from pipeline.training.e4e import DiscriminatorTraining
from pipeline.training.trainer import TrainState

WIDTHS = {4: 128, 8: 128, 16: 96, 32: 64, 64: 32, 128: 24}  # channels of each resolution


@dataclass(frozen=True)
class DiscriminatorPlan:
    """Settings of the adversarial term; positions in the training are fractions of its images."""

    weight: float = 0.03  # of the generator's term
    start: float = 0.15  # where that term begins
    rise: float = 0.1  # length over which it grows to its full weight
    head_start: float = 0.05  # how much earlier the discriminator begins
    lr: float = 2e-3
    every: int = 2  # batches between steps of the discriminator
    r1: float = 1.0
    r1_every: int = 32  # batches between R1 penalties; a multiple of `every`

    def weight_at(self, progress: float) -> float:
        """Return the weight of the generator's term after `progress` of the training."""
        return self.weight * min(1.0, max(0.0, (progress - self.start) / self.rise))


class EqualConv2d(nn.Module):
    """Convolution with equalised learning rate (Karras et al. 2018, sec. 4.1)."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.scale = 1 / math.sqrt(inputs * kernel * kernel)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.scale, self.bias, padding="same")


def _activated(x: Tensor) -> Tensor:
    return F.leaky_relu(x, LEAK) * GAIN


class HalvingBlock(nn.Module):
    """Two convolutions and a shortcut, both halved by block means."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = EqualConv2d(inputs, inputs, 3)
        self.second = EqualConv2d(inputs, outputs, 3)
        self.shortcut = EqualConv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:  # [n, i, h, w] -> [n, o, h / 2, w / 2]
        changed = _activated(self.second(F.avg_pool2d(_activated(self.first(x)), 2)))
        kept: Tensor = self.shortcut(F.avg_pool2d(x, 2))
        return (changed + kept) / math.sqrt(2)


class Discriminator(nn.Module):
    """Map images [n, 3, size, size] to logits [n]; higher means more likely real."""

    def __init__(self, size: int) -> None:
        super().__init__()
        sizes = [side for side in sorted(WIDTHS, reverse=True) if side <= size]
        self.from_rgb = EqualConv2d(3, WIDTHS[sizes[0]], 1)
        self.blocks = nn.Sequential(
            *(HalvingBlock(WIDTHS[wide], WIDTHS[half]) for wide, half in itertools.pairwise(sizes))
        )
        self.last = EqualConv2d(WIDTHS[4] + 1, WIDTHS[4], 3)
        self.logit = EqualConv2d(WIDTHS[4], 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        features = self.blocks(_activated(self.from_rgb(images)))  # [n, c, 4, 4]
        # A generator that always makes the same image has no deviation within a batch.
        deviation = (features.var(dim=0, unbiased=False) + 1e-8).sqrt().mean()
        extra = deviation.expand(len(features), 1, *features.shape[2:])
        last = _activated(self.last(torch.cat([features, extra], dim=1)))
        logits: Tensor = self.logit(last).mean(dim=(1, 2, 3))
        return logits


class ImageAdversary(DiscriminatorTraining):
    """Image discriminator, for one training of a generator."""

    def __init__(self, plan: DiscriminatorPlan, size: int) -> None:
        super().__init__(Discriminator(size), plan.lr, betas=(0.0, 0.99))
        self.plan = plan
        self.loss = torch.zeros(())  # of the last step

    def step(
        self, made: Tensor, real: Tensor, train_state: TrainState, group: Group
    ) -> dict[str, Tensor]:
        """Train the discriminator when it is due; return its last loss, for the log."""
        plan, batches = self.plan, train_state.batches
        early = train_state.progress < plan.start - plan.head_start
        if not early and batches % plan.every == 0:
            r1 = 0.0 if batches % plan.r1_every else plan.r1 * plan.r1_every / plan.every
            self.loss = self.learn(made, real, r1, group)
        return {"discriminator": self.loss}

    def state(self) -> dict[str, Any]:
        """Return the state for the checkpoint."""
        return {**super().state(), "discriminator_loss": self.loss}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""
        super().restore(state)
        self.loss = state["discriminator_loss"]
