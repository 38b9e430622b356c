"""What latent optimisation can be told."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, get_args

from torch import Tensor

from pipeline.choices import Space
from pipeline.errors import ConfigError

# What each setting must lie within.
LIMITS = {
    "rate": (0.0, 100.0),
    "ramp_up": (0.0, 1.0),
    "ramp_down": (0.0, 1.0),
    "noise": (0.0, 100.0),
    "noise_ramp": (0.0, 1.0),
    "l2_weight": (0.0, math.inf),
    "lpips_weight": (0.0, math.inf),
    "distance_weight": (0.0, math.inf),
}


class Perceptual(Protocol):
    """A perceptual distance in two halves, so that a target is looked at once."""

    def embed(self, images: Tensor) -> list[Tensor]:
        """Feature maps of images [n, 3, h, w] in [-1, 1]."""

    def compare(self, a: list[Tensor], b: list[Tensor]) -> Tensor:
        """The distance [n] of what `embed` gave, differentiable."""


@dataclass(frozen=True)
class OptimizeSettings:
    """Settings of `optimize`, plain JSON values; those of lengths are in units of W's spread.

    Raises `ConfigError` naming the first setting that makes no sense.
    """

    space: Space = "w+"
    iterations: int = 300
    rate: float = 0.1  # Adam's largest
    ramp_up: float = 0.05  # share of the iterations in which the rate grows, linearly
    ramp_down: float = 0.25  # share in which it falls, as a cosine
    noise: float = 0.2  # added to the codes in the first iteration
    noise_ramp: float = 0.75  # share of the iterations after which it is gone, quadratically
    l2_weight: float = 1.0
    lpips_weight: float = 1.0
    distance_weight: float = 0.0  # of the mean squared distance to the start; a hybrid has one
    perceptual_side: int = 128  # smaller images are enlarged to it for the perceptual network
    spread: float | None = None  # of W; None: what `latent_spread` finds

    def __post_init__(self) -> None:
        if self.space not in get_args(Space):
            raise ConfigError(f"space must be 'w' or 'w+', not {self.space!r}")
        if self.iterations < 1:
            raise ConfigError(f"iterations is {self.iterations}, expected 1 or more")
        if self.perceptual_side < 32:
            raise ConfigError(f"perceptual_side is {self.perceptual_side}, expected 32 or more")
        for name, (low, high) in LIMITS.items():
            value = getattr(self, name)
            if not (low <= value <= high and math.isfinite(value)):
                raise ConfigError(f"{name} is {value}, expected {low:g} to {high:g}")
        if self.spread is not None and not 0 < self.spread < math.inf:
            raise ConfigError(f"spread is {self.spread}, expected a number above 0")
        if not self.l2_weight + self.lpips_weight > 0:
            raise ConfigError("l2_weight and lpips_weight are both 0: nothing would be matched")

    def rate_at(self, iteration: int) -> float:
        """Adam's rate in `iteration`, counted from 0 (StyleGAN2's projector)."""
        share = (iteration + 1) / self.iterations
        up = min(1.0, share / self.ramp_up) if self.ramp_up else 1.0
        left = min(1.0, (1 - iteration / self.iterations) / self.ramp_down) if self.ramp_down else 1
        return self.rate * up * (0.5 - 0.5 * math.cos(left * math.pi))

    def noise_at(self, iteration: int) -> float:
        """Standard deviation of the noise on the codes in `iteration`, counted from 0."""
        if not self.noise_ramp:
            return 0.0
        left = 1 - iteration / self.iterations / self.noise_ramp
        return self.noise * max(0.0, left) ** 2
