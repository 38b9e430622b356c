"""The ways to a code, behind one door: ReStyle, one-pass encoders, optimisation, and both."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pipeline.choices import MethodName
from pipeline.errors import ConfigError
from pipeline.inversion.adaptive import invert_adaptively
from pipeline.inversion.optimize import check_one_row, optimize
from pipeline.inversion.optimize_settings import OptimizeSettings, Perceptual
from pipeline.inversion.render import pooled, render_each
from pipeline.inversion.restyle_loop import invert
from pipeline.inversion.result import Inversion
from pipeline.inversion.stopping import StopRule, converged
from pipeline.models.model import RestyleModel

# A hybrid begins near its end: it needs no noise to find the way, and a reason to stay close.
OPTIMISATIONS = {
    "optimize": OptimizeSettings(),
    "hybrid": OptimizeSettings(noise=0.0, distance_weight=0.02),
}


@dataclass(frozen=True)
class Method:
    """How codes are found, everything that changes one but the models.

    `restyle`: residual steps, `steps` of them or as many as `stop` asks for, after
    `bootstrap_steps` of another model (ReStyle, sec. 5). `encoder`: one pass of a 3-channel pSp or
    e4e encoder. `optimize`: gradient descent on the code, from the average. `hybrid`: the same,
    from a given code, else from that of `steps` encoder steps. The last two record their code
    `steps` times on the way.
    """

    name: MethodName = "restyle"
    steps: int = 5
    stop: StopRule | None = None
    bootstrap_steps: int = 0
    optimisation: OptimizeSettings | None = None  # None: the method's own
    seed: int = 0

    @property
    def descent(self) -> OptimizeSettings:
        """How `optimize` and `hybrid` descend."""
        return self.optimisation or OPTIMISATIONS[self.name]

    @property
    def most_steps(self) -> int:
        """Steps that no face exceeds."""
        return self.stop.most if self.stop else self.steps

    @property
    def rule(self) -> StopRule:
        """By which a face counts as converged, whether or not it stopped by it."""
        return self.stop or replace(StopRule(), most=self.steps)

    def to_dict(self) -> dict[str, Any]:
        """As a JSON object without what the method does not use."""
        used: dict[str, Any] = {"name": self.name}
        if self.stop:
            used["stop"] = asdict(self.stop)
        if self.bootstrap_steps:
            used["bootstrap_steps"] = self.bootstrap_steps
        if self.name in OPTIMISATIONS:
            used |= {"optimisation": asdict(self.descent), "seed": self.seed}
        return used

    def check(self, model: RestyleModel, *, started: bool = False) -> None:
        """Raise `ConfigError` where `model` has not the encoder that the method needs.

        `started`: every face has a code to start from.
        """
        if model.generator_alone and not (
            self.name == "optimize" or (self.name == "hybrid" and started)
        ):
            raise ConfigError(
                f"the model '{model.name}' is a generator alone, and --method {self.name} finds "
                "codes with an encoder: use --method optimize, or a model that has an encoder"
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
            check_one_row(model.latent_avg)


@dataclass(frozen=True)
class Models:
    """The networks of a method: `first` is where a bootstrapped inversion begins."""

    model: RestyleModel
    first: RestyleModel | None = None
    perceptual: Perceptual | None = None  # of optimize and hybrid


def seed_of(name: str, seed: int = 0) -> int:
    """A face's own seed, 0..2^63-1, by its name: the same in every retry and on every machine."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def find_codes(
    method: Method,
    models: Models,
    images: Tensor,  # [n, 3, *input_size] in [-1, 1]
    names: Sequence[str],  # of the n faces, for their seeds
    *,
    batch_size: int,
    start: Tensor | None = None,  # [n, n_styles, 512]
    full_size: bool = True,
) -> Inversion:
    """The codes of n faces by `method`, `batch_size` of them at a time where they take turns.

    With `full_size` off `Inversion.images` may be pooled. Raises as `invert` and `optimize` do.
    """
    if method.name in OPTIMISATIONS:
        return _optimised(method, models, images, names, start)
    if method.bootstrap_steps and models.first:
        return _bootstrapped(method, models, images, batch_size, full_size)
    seen = None
    if start is not None and models.first:
        with torch.no_grad():
            frames = render_each(models.first, start.to(models.first.latent_avg.device))
            seen = torch.stack([pooled(frame, models.model.input_size) for frame in frames])
    return _restyled(method, models.model, images, batch_size, full_size, start, seen)


def found_its_end(inversion: Inversion, images: Tensor, method: Method) -> list[bool | None]:
    """Of each face whether it converged; None where the method has no notion of it."""
    if method.name != "restyle":
        return [None] * len(images)
    # What ended a loop is not computed again: in a batch of another size a gain rounds otherwise.
    ended = inversion.stopped
    if ended is None:
        ended = converged(inversion, images, method.rule)
    flags: list[bool | None] = ended.tolist()
    return flags


def _restyled(
    method: Method,
    model: RestyleModel,
    images: Tensor,
    batch_size: int,
    full_size: bool,
    start: Tensor | None,
    seen: Tensor | None,
) -> Inversion:
    if method.stop is None:
        return invert(model, images, steps=method.steps, start=start, start_images=seen)
    return invert_adaptively(
        model,
        images,
        method.stop,
        batch_size=batch_size,
        start=start,
        start_images=seen,
        full_size=full_size,
    )


def _bootstrapped(
    method: Method, models: Models, images: Tensor, batch_size: int, full_size: bool
) -> Inversion:
    first = models.first or models.model
    # Of an adaptive stop the images are many batches, whose frames nobody looks at.
    begun = [invert(first, few, steps=method.bootstrap_steps) for few in images.split(batch_size)]
    start = torch.cat([few.w_plus[:, -1] for few in begun])
    seen = torch.cat([few.step_images[:, -1] for few in begun])
    passes = torch.cat([few.generator_passes for few in begun])
    found = _restyled(method, models.model, images, batch_size, full_size, start, seen)
    return replace(found, generator_passes=found.generator_passes + passes)


def _optimised(
    method: Method,
    models: Models,
    images: Tensor,
    names: Sequence[str],
    start: Tensor | None,
) -> Inversion:
    passes = torch.zeros(len(images), dtype=torch.int64, device=models.model.latent_avg.device)
    if method.name == "hybrid" and start is None:
        steps = 1 if models.model.single_pass else method.steps
        begun = invert(models.model, images, steps=steps)
        start, passes = begun.w_plus[:, -1], begun.generator_passes
    found = optimize(
        models.model,
        images,
        seeds=[seed_of(name, method.seed) for name in names],
        settings=method.descent,
        perceptual=models.perceptual,
        steps=method.steps,
        start=start,
    )
    return replace(found, generator_passes=found.generator_passes + passes)
