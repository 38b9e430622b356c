"""Latent optimisation in the style of StyleGAN2's projector (Karras et al. 2020, appendix D).

Codes themselves are fitted to the images by Adam, with its rate ramped up and down and with noise
on the codes that fades. Two things differ from the projector. Noise maps stay the model's own, as
everywhere in this library: a code alone says what an image is, so the maps are not fitted and
need no regularisation. And what is seen is compared as the table does, by mean squared error and
LPIPS, at the encoder's input size.

Faces share a batch, but nothing else: each has its own noise, its own state in Adam, whose
arithmetic is elementwise, and its own term in a loss that is a sum.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.inversion.optimize_settings import OptimizeSettings, Perceptual
from pipeline.inversion.render import Version, pooled, render_each, version_of
from pipeline.inversion.result import Inversion
from pipeline.inversion.shapes import of_shape
from pipeline.models.model import RestyleModel
from pipeline.models.stylegan2 import LATENT_DIM

DRAWS, SEED = 4096, 2020
# In the FFHQ generator a code is 8.1 from the average on average, and the average 4.1 from 0.
SPREAD_OF_AVERAGE = 2.0

_spreads: WeakKeyDictionary[RestyleModel, tuple[Version, float]] = WeakKeyDictionary()


@torch.no_grad()
def latent_spread(model: RestyleModel) -> float:
    """Root mean square of one of a W code's 512 numbers around the average latent.

    From seeded Z codes where the generator carries its mapping network, as official checkpoints
    do (StyleGAN2's projector, whose figure is √512 times this). Without one it is estimated as
    twice the RMS of the average latent. Raises `ConfigError` where that is 0 too.
    """
    version = version_of(model)
    known = _spreads.get(model)
    if known is not None and known[0] == version:
        return known[1]
    spread = _measured(model) if model.architecture.mapping_layers else _guess(model)
    if not 0 < spread < float("inf"):
        raise ConfigError(
            f"model '{model.name}' does not tell how far its codes spread: set spread to the "
            "standard deviation of a W code's numbers (0.36 for FFHQ)"
        )
    if version is not None:
        _spreads[model] = (version, spread)
    return spread


def _measured(model: RestyleModel) -> float:
    generator = torch.Generator().manual_seed(SEED)
    z = torch.randn(DRAWS, LATENT_DIM, generator=generator).to(model.latent_avg.device)
    w = model.generator.map_z(z)
    return float((w - w.mean(dim=0)).square().mean().sqrt())


def _guess(model: RestyleModel) -> float:
    return SPREAD_OF_AVERAGE * float(model.latent_avg.square().mean().sqrt())


# Output pixels rendered with gradients at once; autograd keeps 2.5 GB for a face of 1024 px.
PIXELS_AT_ONCE = {"cpu": 16 * 64 * 64, "cuda": 6 * 1024 * 1024}
BETAS = (0.9, 0.999)


def optimize(
    model: RestyleModel,
    images: Tensor,  # [n, 3, *model.input_size] in [-1, 1]
    *,
    seeds: Sequence[int],  # one a face: its noise, whatever its neighbours
    settings: OptimizeSettings,
    perceptual: Perceptual | None = None,
    steps: int = 5,
    start: Tensor | None = None,  # [n, n_styles, 512]
) -> Inversion:
    """Fit a code to each image, from the average latent or, as a hybrid, from `start`.

    A step of the result is `iterations / steps` iterations; its code and image are without noise.
    The noise maps and the weights stay as they are. Seeds and settings decide the result beyond
    rounding, which the faces of a call share. Non-finite results are not raised but marked in
    `Inversion.finite`. In space `w` all rows of a code are equal.

    Raises `ShapeError` if a tensor is not what the model takes, `ConfigError` for settings that do
    not go together.
    """
    images = of_shape("images", images, (None, 3, *model.input_size), model)
    first = _start(model, len(images), settings, start)
    _check(images, seeds, settings, perceptual, steps)
    spread = settings.spread or latent_spread(model)
    at_once = PIXELS_AT_ONCE["cpu" if images.device.type == "cpu" else "cuda"]
    few = max(1, at_once // model.generator_size**2)
    parts = []
    with _weights_fixed(model):
        for low in range(0, len(images), few):
            group = slice(low, low + few)
            problem = _Problem(model, images[group], first[group], spread, settings, perceptual)
            parts.append(torch.stack(list(_descend(problem, seeds[group], steps)), dim=1))
    return _rendered(model, images, first, torch.cat(parts), settings.iterations)


class _Problem:
    """The loss of some faces as a function of their codes' offsets from the start."""

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
                self.wanted = self.perceptual.embed(self._enlarged(images))

    def codes(self, offsets: Tensor) -> Tensor:
        """Codes [n, n_styles, 512] of offsets [n, n_styles or 1, 512] in units of the spread."""
        return self.start + self.spread * offsets

    def loss(self, offsets: Tensor, noise: Tensor | None) -> Tensor:
        """Each face's loss, [n]."""
        moved = offsets if noise is None else offsets + noise
        frames = self.model.frame(self.model.generator(self.codes(moved)))
        seen = pooled(frames, self.model.input_size)
        loss = self.settings.l2_weight * (seen - self.images).square().mean(dim=(1, 2, 3))
        if self.perceptual is not None:
            maps = self.perceptual.embed(self._enlarged(seen))
            loss = loss + self.settings.lpips_weight * self.perceptual.compare(self.wanted, maps)
        return loss + self.settings.distance_weight * offsets.square().mean(dim=(1, 2))

    def _enlarged(self, images: Tensor) -> Tensor:
        """Images whose longer side is at least what the perceptual network is to see."""
        factor = self.settings.perceptual_side / max(images.shape[-2:])
        if factor <= 1:
            return images
        size = [round(side * factor) for side in images.shape[-2:]]
        return F.interpolate(images, size, mode="bilinear", align_corners=False)


def _descend(problem: _Problem, seeds: Sequence[int], steps: int) -> Iterator[Tensor]:
    """The codes [n, n_styles, 512] at `steps` even stages of the descent, the last at its end."""
    settings, n = problem.settings, len(problem.images)
    rows = 1 if settings.space == "w" else problem.model.n_styles
    offsets = problem.start.new_zeros(n, rows, LATENT_DIM).requires_grad_()
    adam = torch.optim.Adam([offsets], betas=BETAS)
    draws = [torch.Generator().manual_seed(seed) for seed in seeds]
    stages = {settings.iterations * (step + 1) // steps for step in range(steps)}
    for iteration in range(settings.iterations):
        noise = _noise(draws, offsets, settings.noise_at(iteration))
        adam.param_groups[0]["lr"] = settings.rate_at(iteration)
        adam.zero_grad()
        with torch.enable_grad():
            problem.loss(offsets, noise).sum().backward()
        adam.step()
        if iteration + 1 in stages:
            yield problem.codes(offsets.detach())


def _noise(draws: Sequence[torch.Generator], like: Tensor, scale: float) -> Tensor | None:
    """Each face's own noise, drawn on the CPU so that every device sees the same; None for 0."""
    if scale == 0:
        return None
    drawn = [torch.randn(like.shape[1:], generator=draw) for draw in draws]
    return scale * torch.stack(drawn).to(like.device)


@torch.no_grad()
def _rendered(
    model: RestyleModel, images: Tensor, start: Tensor, w_plus: Tensor, iterations: int
) -> Inversion:
    """`w_plus` [n, steps, n_styles, 512] with its images."""
    n, steps = w_plus.shape[:2]
    step_images = images.new_empty(n, steps, *images.shape[1:])
    last = images.new_empty(n, 3, *model.frame_size)
    for step in range(steps):
        for face, frame in enumerate(render_each(model, w_plus[:, step])):
            step_images[face, step] = pooled(frame, model.input_size)
            if step == steps - 1:
                last[face] = frame
    made = torch.full((n,), steps, device=images.device)
    passes = made + iterations
    return Inversion(w_plus, last, step_images, start, None, model.latent_avg, made, passes)


@contextmanager
def _weights_fixed(model: RestyleModel) -> Iterator[None]:
    """No gradients for weights, in evaluation mode; afterwards the model is as it was found."""
    asked = [weight for weight in model.parameters() if weight.requires_grad]
    training = [part for part in model.modules() if part.training]
    try:
        model.requires_grad_(False).eval()
        yield
    finally:
        for weight in asked:
            weight.requires_grad_(True)
        for part in training:
            part.training = True


def _start(model: RestyleModel, n: int, settings: OptimizeSettings, start: Tensor | None) -> Tensor:
    if start is None:
        codes = model.latent_avg.expand(n, -1, -1)
    else:
        codes = of_shape("start", start, (n, model.n_styles, LATENT_DIM), model)
    if settings.space == "w":
        check_one_row(codes)
    return codes


def check_one_row(codes: Tensor) -> None:
    """Raise `ConfigError` where codes [..., n_styles, 512] are not in W: rows that differ."""
    if not torch.equal(codes, codes[..., :1, :].expand_as(codes)):
        raise ConfigError("space 'w' has one row for all, the start has rows that differ: use 'w+'")


def _check(
    images: Tensor,
    seeds: Sequence[int],
    settings: OptimizeSettings,
    perceptual: Perceptual | None,
    steps: int,
) -> None:
    if len(seeds) != len(images):
        raise ConfigError(f"{len(images)} images need as many seeds, not {len(seeds)}")
    if not 1 <= steps <= settings.iterations:
        raise ConfigError(f"steps is {steps}, expected 1 to {settings.iterations} iterations")
    if settings.lpips_weight > 0 and perceptual is None:
        raise ConfigError(
            f"lpips_weight is {settings.lpips_weight} but no perceptual network is given: pass "
            "one, or set it to 0"
        )
