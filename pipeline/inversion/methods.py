"""Inversion methods behind one function: ReStyle, one-pass encoders, optimisation, hybrid."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pipeline.choices import MethodName
from pipeline.errors import ConfigError
from pipeline.inversion.adaptive import invert_adaptively
from pipeline.inversion.optimize import (
    OptimizeSettings,
    Perceptual,
    check_equal_rows,
    optimize,
)
from pipeline.inversion.render import pooled, render_each
from pipeline.inversion.restyle_loop import invert, rows_of
from pipeline.inversion.result import Inversion
from pipeline.inversion.stopping import StopRule, converged
from pipeline.models.model import RestyleModel

# A hybrid starts near its result: no noise for exploration, but a penalty on the distance.
OPTIMISATIONS = {
    "optimize": OptimizeSettings(),
    "hybrid": OptimizeSettings(noise=0.0, distance_weight=0.02),
}


@dataclass(frozen=True)
class Method:
    """Inversion method and its settings: everything that changes a code except the models.

    `restyle`: `steps` residual steps, or as many as `stop` needs, after `bootstrap_steps` of
    another model (ReStyle, sec. 5). `encoder`: one pass of a 3-channel pSp or e4e encoder.
    `optimize`: gradient descent on the code, from the average. `hybrid`: the same, from a given
    code, else from the result of `steps` encoder steps. The last two record their code `steps`
    times.
    """

    name: MethodName = "restyle"
    steps: int = 5
    stop: StopRule | None = None
    bootstrap_steps: int = 0
    optimisation: OptimizeSettings | None = None  # None: the method's default
    seed: int = 0

    @property
    def descent(self) -> OptimizeSettings:
        """Settings of the gradient descent of `optimize` and `hybrid`."""
        return self.optimisation or OPTIMISATIONS[self.name]

    @property
    def rule(self) -> StopRule:
        """Rule by which a face counts as converged, also if `steps` is fixed."""
        return self.stop or replace(StopRule(), max_steps=self.steps)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings that the method uses, as a JSON object."""
        used: dict[str, Any] = {"name": self.name}
        if self.stop:
            used["stop"] = self.stop.to_dict()
        if self.bootstrap_steps:
            used["bootstrap_steps"] = self.bootstrap_steps
        if self.name in OPTIMISATIONS:
            used |= {"optimisation": self.descent.to_dict(), "seed": self.seed}
        return used

    def check(self, model: RestyleModel, *, started: bool = False) -> None:
        """Raise `ConfigError` if `model` lacks the encoder that the method needs.

        `started`: every face has a code to start from.
        """
        if model.generator_alone and not (
            self.name == "optimize" or (self.name == "hybrid" and started)
        ):
            raise ConfigError(
                f"the model '{model.name}' is a generator alone, and --method {self.name} needs "
                "an encoder: use --method optimize, or a model that has an encoder"
            )
        if self.name == "restyle" and model.single_pass:
            raise ConfigError(
                f"the model '{model.name}' has a one-pass encoder: use --method encoder"
            )
        if self.name == "encoder" and not model.single_pass:
            raise ConfigError(
                f"the model '{model.name}' has a ReStyle encoder, which sees a reconstruction: "
                "use --method restyle --steps 1"
            )
        if self.name == "optimize" and self.descent.space == "w":
            check_equal_rows(model.latent_avg)


@dataclass(frozen=True)
class Models:
    """Networks of a method; `first` is the first model of a bootstrapped inversion."""

    model: RestyleModel
    first: RestyleModel | None = None
    perceptual: Perceptual | None = None  # of optimize and hybrid


def seed_of(name: str, seed: int = 0) -> int:
    """Return the seed of a face, 0..2^63-1, from its name: equal in retries and on all machines."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def find_codes(
    method: Method,
    models: Models,
    images: Tensor,  # [n, 3, *input_size] in [-1, 1]
    names: Sequence[str],  # of the n faces, for their seeds
    *,
    batch_size: int,
    start: Tensor | None = None,  # [n, n_styles, 512], of `models.first` if there is one
    full_size: bool = True,
) -> Inversion:
    """Invert n faces by `method`; an adaptive stop and a bootstrap run `batch_size` at a time.

    With `full_size` off `Inversion.images` may be pooled. Raises like `invert` and `optimize`.
    """
    if method.name in OPTIMISATIONS:
        return _optimize(method, models, images, names, start)
    if method.bootstrap_steps and models.first:
        return _bootstrap(method, models, images, batch_size, full_size)
    rendered = None
    if start is not None and models.first:
        with torch.no_grad():
            frames = render_each(models.first, start.to(models.first.latent_avg.device))
            rendered = torch.stack([pooled(frame, models.model.input_size) for frame in frames])
        start = rows_of(models.model, start)
    return _restyle(method, models.model, images, batch_size, full_size, start, rendered)


def convergence(inversion: Inversion, images: Tensor, method: Method) -> Tensor | None:
    """Return whether each face converged, bool [n]; None for methods without a stop rule."""
    if method.name != "restyle":
        return None
    # Keep the loop's own decision: in another batch size an improvement may round differently.
    if inversion.stopped is not None:
        return inversion.stopped
    return converged(inversion, images, method.rule)


def _restyle(
    method: Method,
    model: RestyleModel,
    images: Tensor,
    batch_size: int,
    full_size: bool,
    start: Tensor | None,
    start_images: Tensor | None,
) -> Inversion:
    if method.stop is None:
        return invert(
            model,
            images,
            steps=method.steps,
            start=start,
            start_images=start_images,
            full_size=full_size,
        )
    return invert_adaptively(
        model,
        images,
        method.stop,
        batch_size=batch_size,
        start=start,
        start_images=start_images,
        full_size=full_size,
    )


def _bootstrap(
    method: Method, models: Models, images: Tensor, batch_size: int, full_size: bool
) -> Inversion:
    first = models.first or models.model
    # With an adaptive stop `images` is a whole part: split it, since the frames are not kept.
    steps = method.bootstrap_steps
    initial = [
        invert(first, batch, steps=steps, full_size=False) for batch in images.split(batch_size)
    ]
    start = rows_of(models.model, torch.cat([batch.w_plus[:, -1] for batch in initial]))
    rendered = torch.cat([batch.step_images[:, -1] for batch in initial])
    passes = torch.cat([batch.generator_passes for batch in initial])
    result = _restyle(method, models.model, images, batch_size, full_size, start, rendered)
    return replace(result, generator_passes=result.generator_passes + passes)


def _optimize(
    method: Method,
    models: Models,
    images: Tensor,
    names: Sequence[str],
    start: Tensor | None,
) -> Inversion:
    passes = torch.zeros(len(images), dtype=torch.int64, device=models.model.latent_avg.device)
    if method.name == "hybrid" and start is None:
        steps = 1 if models.model.single_pass else method.steps
        initial = invert(models.model, images, steps=steps, full_size=False)
        start, passes = initial.w_plus[:, -1], initial.generator_passes
    result = optimize(
        models.model,
        images,
        seeds=[seed_of(name, method.seed) for name in names],
        settings=method.descent,
        perceptual=models.perceptual,
        steps=method.steps,
        start=start,
    )
    return replace(result, generator_passes=result.generator_passes + passes)
