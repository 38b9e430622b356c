"""Latent optimisation in the style of StyleGAN2's projector (Karras et al. 2020, appendix D).

Adam fits the codes to the images, with a learning rate that ramps up and down and with decreasing
noise on the codes. Two things differ from the projector. The noise maps are the model's own and are
not fitted, since an image must depend on its code alone; so they need no regularisation. And images
are compared by mean squared error and LPIPS at the encoder's input size, like the table's metrics.

The faces of a batch are independent: each has its own noise, its own term in the summed loss, and
its own state in Adam, which works elementwise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Protocol, get_args
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.choices import Space
from pipeline.errors import ConfigError
from pipeline.inversion.render import Version, pooled, render_each, version_of
from pipeline.inversion.result import Inversion, check_tensor
from pipeline.models.model import RestyleModel
from pipeline.models.stylegan2 import LATENT_DIM

# Smallest and largest value of each setting.
LIMITS = {
    "lr": (0.0, 100.0),
    "ramp_up": (0.0, 1.0),
    "ramp_down": (0.0, 1.0),
    "noise": (0.0, 100.0),
    "noise_ramp": (0.0, 1.0),
    "l2_weight": (0.0, math.inf),
    "lpips_weight": (0.0, math.inf),
    "distance_weight": (0.0, math.inf),
}


class Perceptual(Protocol):
    """Perceptual distance in two parts, so that the target's features are computed once."""

    def embed(self, images: Tensor) -> list[Tensor]:
        """Return feature maps of images [n, 3, h, w] in [-1, 1]."""

    def compare(self, a: list[Tensor], b: list[Tensor]) -> Tensor:
        """Return the distance [n] of two results of `embed`; differentiable."""


@dataclass(frozen=True)
class OptimizeSettings:
    """Settings of `optimize`; lengths (`lr`, `noise`) are in units of the spread of W.

    Raises `ConfigError` with the first invalid setting.
    """

    space: Space = "w+"
    iterations: int = 300
    lr: float = 0.1  # largest learning rate of Adam
    ramp_up: float = 0.05  # fraction of the iterations in which the rate rises, linearly
    ramp_down: float = 0.25  # fraction in which it falls, as a cosine
    noise: float = 0.2  # standard deviation of the noise in the first iteration
    noise_ramp: float = 0.75  # fraction of the iterations after which noise is 0; quadratic
    l2_weight: float = 1.0
    lpips_weight: float = 1.0
    distance_weight: float = 0.0  # of the mean squared distance to the start
    perceptual_side: int = 128  # smaller images are enlarged to it for the perceptual network
    spread: float | None = None  # of W; None: `latent_spread` of the model

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
            raise ConfigError("l2_weight and lpips_weight are both 0: set one of them above 0")

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as a JSON object of a table's fingerprint, `lr` as `rate`."""
        return {"rate" if name == "lr" else name: value for name, value in asdict(self).items()}

    def lr_at(self, iteration: int) -> float:
        """Return the learning rate of `iteration`, counted from 0 (StyleGAN2's projector)."""
        share = (iteration + 1) / self.iterations
        up = min(1.0, share / self.ramp_up) if self.ramp_up else 1.0
        left = min(1.0, (1 - iteration / self.iterations) / self.ramp_down) if self.ramp_down else 1
        return self.lr * up * (0.5 - 0.5 * math.cos(left * math.pi))

    def noise_at(self, iteration: int) -> float:
        """Return the standard deviation of the noise in `iteration`, counted from 0."""
        if not self.noise_ramp:
            return 0.0
        left = 1 - iteration / self.iterations / self.noise_ramp
        return self.noise * max(0.0, left) ** 2


DRAWS, SEED = 4096, 2020
# FFHQ's generator: codes have a mean distance of 8.1 from the average, the average 4.1 from 0.
SPREAD_OF_AVERAGE = 2.0

_spreads: WeakKeyDictionary[RestyleModel, tuple[Version, float]] = WeakKeyDictionary()


@torch.no_grad()
def latent_spread(model: RestyleModel) -> float:
    """Return the standard deviation of the values of W codes around the average latent.

    Measured on seeded Z codes if the generator has a mapping network, as official checkpoints do
    (StyleGAN2's projector uses √512 times this number). Else estimated as twice the RMS of the
    average latent. Raises `ConfigError` if the result is 0 or not finite.
    """
    version = version_of(model)
    cached = _spreads.get(model)
    if cached is not None and cached[0] == version:
        return cached[1]
    if model.architecture.mapping_layers:
        spread = _measure_spread(model)
    else:
        spread = SPREAD_OF_AVERAGE * float(model.latent_avg.square().mean().sqrt())
    if not 0 < spread < float("inf"):
        raise ConfigError(
            f"model '{model.name}': its codes have a spread of {spread}, expected above 0: "
            "set spread to the standard deviation of the values of W codes (0.36 for FFHQ)"
        )
    if version is not None:
        _spreads[model] = (version, spread)
    return spread


def _measure_spread(model: RestyleModel) -> float:
    generator = torch.Generator().manual_seed(SEED)
    z = torch.randn(DRAWS, LATENT_DIM, generator=generator).to(model.latent_avg.device)
    w = model.generator.map_z(z)
    return float((w - w.mean(dim=0)).square().mean().sqrt())


# Output pixels rendered at once with gradients; autograd keeps 2.5 GB for a face of 1024 px.
PIXELS_AT_ONCE = {"cpu": 16 * 64 * 64, "cuda": 6 * 1024 * 1024}
BETAS = (0.9, 0.999)


def optimize(
    model: RestyleModel,
    images: Tensor,  # [n, 3, *model.input_size] in [-1, 1]
    *,
    seeds: Sequence[int],  # one per face, for its noise
    settings: OptimizeSettings,
    perceptual: Perceptual | None = None,
    steps: int = 5,
    start: Tensor | None = None,  # [n, n_styles, 512]
) -> Inversion:
    """Fit a code to each image, from the average latent or, as a hybrid, from `start`.

    One step of the result is `iterations / steps` iterations; its code and image have no noise.
    Noise maps and weights do not change. Equal seeds and settings give equal results up to
    rounding, which depends on the faces of the call. Non-finite results raise no error: see
    `Inversion.finite`. In space `w` all rows of a code are equal.

    Raises `ShapeError` if a tensor does not fit the model, `ConfigError` for invalid or
    inconsistent settings.
    """
    images = check_tensor("images", images, (None, 3, *model.input_size), model)
    first = _initial_codes(model, len(images), settings, start)
    _check_arguments(images, seeds, settings, perceptual, steps)
    spread = settings.spread or latent_spread(model)
    at_once = PIXELS_AT_ONCE["cpu" if images.device.type == "cpu" else "cuda"]
    group_size = max(1, at_once // model.generator_size**2)
    parts = []
    with _frozen(model):
        for low in range(0, len(images), group_size):
            group = slice(low, low + group_size)
            problem = _Problem(model, images[group], first[group], spread, settings, perceptual)
            parts.append(torch.stack(list(_descend(problem, seeds[group], steps)), dim=1))
    return _render_steps(model, images, first, torch.cat(parts), settings.iterations)


class _Problem:
    """Loss of a group of faces as a function of their codes' offsets from the start."""

    def __init__(
        self,
        model: RestyleModel,
        images: Tensor,
        start: Tensor,
        spread: float,
        settings: OptimizeSettings,
        perceptual: Perceptual | None,
    ) -> None:
        self.model, self.images, self.start = model, images, start
        self.spread, self.settings = spread, settings
        self.perceptual = perceptual if settings.lpips_weight > 0 else None
        if self.perceptual is not None:
            with torch.no_grad():
                self.target_features = self.perceptual.embed(self._enlarged(images))

    def codes(self, offsets: Tensor) -> Tensor:
        """Return codes [n, n_styles, 512] of offsets [n, n_styles or 1, 512], in spreads of W."""
        return self.start + self.spread * offsets

    def loss(self, offsets: Tensor, noise: Tensor | None) -> Tensor:
        """Return the loss of each face, [n]."""
        moved = offsets if noise is None else offsets + noise
        frames = self.model.frame(self.model.generator(self.codes(moved)))
        rendered = pooled(frames, self.model.input_size)
        loss = self.settings.l2_weight * (rendered - self.images).square().mean(dim=(1, 2, 3))
        if self.perceptual is not None:
            maps = self.perceptual.embed(self._enlarged(rendered))
            loss = loss + self.settings.lpips_weight * self.perceptual.compare(
                self.target_features, maps
            )
        return loss + self.settings.distance_weight * offsets.square().mean(dim=(1, 2))

    def _enlarged(self, images: Tensor) -> Tensor:
        """Enlarge images whose longer side is under `perceptual_side`."""
        factor = self.settings.perceptual_side / max(images.shape[-2:])
        if factor <= 1:
            return images
        size = [round(side * factor) for side in images.shape[-2:]]
        return F.interpolate(images, size, mode="bilinear", align_corners=False)


def _descend(problem: _Problem, seeds: Sequence[int], steps: int) -> Iterator[Tensor]:
    """Yield the codes [n, n_styles, 512] at `steps` evenly spaced iterations."""
    settings, n = problem.settings, len(problem.images)
    rows = 1 if settings.space == "w" else problem.model.n_styles
    offsets = problem.start.new_zeros(n, rows, LATENT_DIM).requires_grad_()
    adam = torch.optim.Adam([offsets], betas=BETAS)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    stages = {settings.iterations * (step + 1) // steps for step in range(steps)}
    for iteration in range(settings.iterations):
        noise = _noise(generators, offsets, settings.noise_at(iteration))
        adam.param_groups[0]["lr"] = settings.lr_at(iteration)
        adam.zero_grad()
        with torch.enable_grad():
            problem.loss(offsets, noise).sum().backward()
        adam.step()
        if iteration + 1 in stages:
            yield problem.codes(offsets.detach())


def _noise(generators: Sequence[torch.Generator], like: Tensor, scale: float) -> Tensor | None:
    """Return noise per face, drawn on the CPU, so equal on all devices; None for `scale` 0."""
    if scale == 0:
        return None
    noise = [torch.randn(like.shape[1:], generator=generator) for generator in generators]
    return scale * torch.stack(noise).to(like.device)


@torch.no_grad()
def _render_steps(
    model: RestyleModel, images: Tensor, start: Tensor, w_plus: Tensor, iterations: int
) -> Inversion:
    """Render `w_plus` [n, steps, n_styles, 512] and return the result."""
    n, steps = w_plus.shape[:2]
    step_images = images.new_empty(n, steps, *images.shape[1:])
    last = images.new_empty(n, 3, *model.frame_size)
    for step in range(steps):
        for face, frame in enumerate(render_each(model, w_plus[:, step])):
            step_images[face, step] = pooled(frame, model.input_size)
            if step == steps - 1:
                last[face] = frame
    steps_made = torch.full((n,), steps, device=images.device)
    passes = steps_made + iterations
    return Inversion(w_plus, last, step_images, start, None, model.latent_avg, steps_made, passes)


@contextmanager
def _frozen(model: RestyleModel) -> Iterator[None]:
    """Freeze the model in evaluation mode; restore its gradients and modes at the end."""
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    training = [part for part in model.modules() if part.training]
    try:
        model.requires_grad_(False).eval()
        yield
    finally:
        for weight in trainable:
            weight.requires_grad_(True)
        for part in training:
            part.training = True


def _initial_codes(
    model: RestyleModel, n: int, settings: OptimizeSettings, start: Tensor | None
) -> Tensor:
    if start is None:
        codes = model.latent_avg.expand(n, -1, -1)
    else:
        codes = check_tensor("start", start, (n, model.n_styles, LATENT_DIM), model)
    if settings.space == "w":
        check_equal_rows(codes)
    return codes


def check_equal_rows(codes: Tensor) -> None:
    """Raise `ConfigError` if the rows of codes [..., n_styles, 512] differ: they are not in W."""
    if not torch.equal(codes, codes[..., :1, :].expand_as(codes)):
        raise ConfigError(
            "space 'w' needs codes with equal rows, the start has rows that differ: use 'w+'"
        )


def _check_arguments(
    images: Tensor,
    seeds: Sequence[int],
    settings: OptimizeSettings,
    perceptual: Perceptual | None,
    steps: int,
) -> None:
    if len(seeds) != len(images):
        raise ConfigError(
            f"got {len(seeds)} seeds for {len(images)} images: pass one seed per image"
        )
    if not 1 <= steps <= settings.iterations:
        raise ConfigError(f"steps is {steps}, expected 1 to {settings.iterations} iterations")
    if settings.lpips_weight > 0 and perceptual is None:
        raise ConfigError(
            f"lpips_weight is {settings.lpips_weight} but there is no perceptual network: pass "
            "`perceptual`, or set lpips_weight to 0"
        )
