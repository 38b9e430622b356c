"""Train a ReStyle encoder for a frozen generator with the paper's scheme.

Each batch runs N refinement steps. Each step has its own loss and gradient and passes its code and
image on detached (Alaluf et al. 2021, sec. 3.2 and 3.4). The optimiser steps once per batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.inversion import average_image, invert
from pipeline.inversion.render import pooled, render_each
from pipeline.inversion.restyle_loop import start_codes
from pipeline.metrics.lpips import load_lpips
from pipeline.metrics.pixel import mean_squared_error
from pipeline.models import RestyleModel
from pipeline.training.augment import augment, jitter
from pipeline.training.distributed import Group
from pipeline.training.e4e import (
    Adversary,
    Stages,
    clear_gradients,
    delta_norms,
    late_heads,
    staged,
    w_norm,
)
from pipeline.training.losses import FeatureNetwork, ImageLoss, ImageWeights
from pipeline.training.official_resume import Continuation, restore_optimiser
from pipeline.training.trainer import Task, TrainState, Validation

DEFAULTS = 2  # version of the default weights and stages
VALIDATION_BATCH = 50  # faces per encoder call


class Faces(NamedTuple):
    """A batch [n, 3, h, w] in [-1, 1]."""

    input: Tensor  # images that the encoder gets, of its input size
    target: Tensor  # images to reconstruct, of input or frame size; may be the same tensor


def augment_faces(
    faces: Faces,
    change: Callable[[Tensor], Tensor] = augment,
    change_target: Callable[[Tensor], Tensor] = jitter,
) -> Faces:
    """Change inputs by `change`, and targets that are other images, with the same random draws."""
    if faces.input is faces.target:
        images = change(faces.input)
        return Faces(images, images)
    rng_state = torch.get_rng_state()
    target = change_target(faces.target)
    torch.set_rng_state(rng_state)
    return Faces(change(faces.input), target)


# From the encoder's inputs [n, 3, h, w] to initial codes [n, n_styles, 512] and their images.
Start = Callable[[Tensor], tuple[Tensor, Tensor]]


def average_start(model: RestyleModel) -> Start:
    """Start every face from the code that the first step of `model` adds to, and its image."""
    code, image = start_codes(model, 1, None)[0], average_image(model)
    return lambda inputs: (
        code.expand(len(inputs), -1, -1),
        image.expand(len(inputs), -1, -1, -1),
    )


def model_start(model: RestyleModel, rows: int) -> Start:
    """Start every face from the first step of another model: bootstrapping (ReStyle, sec. 5).

    Of its codes the first `rows` are used.
    """

    def start(inputs: Tensor) -> tuple[Tensor, Tensor]:
        inversion = invert(model, inputs, steps=1)
        return inversion.w_plus[:, -1, :rows], inversion.step_images[:, -1]

    return start


@dataclass(frozen=True)
class EncoderPlan:
    """Refinement steps, losses and stages of an encoder's training."""

    steps: int = 5
    early_steps: int | None = None  # steps in the first half of the training; None: `steps`
    first_step_share: float = 1.0  # weight of the first step's loss; the others have 1
    images: ImageWeights = field(default_factory=lambda: ImageWeights(l2=1.0, lpips=0.8))
    w_norm: float = 0.0
    delta_norm: float = 0.0  # e4e: 2e-4
    stages: Stages | None = None  # e4e: one row after another
    images_before: int = 0  # images of the training that this one continues; stages count them
    spread: float = 1.0  # scale of the encoder's output; a new encoder learns faster in W's unit
    full_size: bool = False  # compare images of the generator's size, not of the encoder's input

    def steps_at(self, train_state: TrainState) -> int:
        """Return the number of refinement steps of a batch."""
        early = 2 * train_state.images < train_state.planned
        return self.early_steps if early and self.early_steps else self.steps


def render(model: RestyleModel, size: tuple[int, int], codes: Tensor) -> Tensor:
    """Return the images [n, 3, *size] of `codes` [n, n_styles, 512]; gradients pass through."""
    return F.adaptive_avg_pool2d(model.frame(model.generator(codes)), size)


def render_in_chunks(model: RestyleModel, size: tuple[int, int], codes: Tensor) -> Tensor:
    """Return `render`'s images without gradients, in the chunks of an inversion.

    Fifty faces of 1024 px at once would need 35 GB.
    """
    return torch.stack([pooled(frame, size) for frame in render_each(model, codes)])


def refine(
    encoder: nn.Module,
    render: Callable[[Tensor], Tensor],
    start: tuple[Tensor, Tensor],  # codes [n, n_styles, 512], images of any size
    inputs: Tensor,  # [n, 3, h, w]
    steps: int,
    *,
    single_pass: bool = False,  # the encoder gets no reconstruction
    spread: float = 1.0,
    stage: int | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield each step's codes and what `render` made of them; gradients reach that step only."""
    codes, rendered = start
    for _ in range(steps):
        seen = F.adaptive_avg_pool2d(rendered, (inputs.shape[-2], inputs.shape[-1]))
        residual = encoder(inputs if single_pass else torch.cat([inputs, seen], dim=1)) * spread
        codes = codes + (residual if stage is None else staged(residual, stage))
        rendered = render(codes)
        yield codes, rendered
        codes, rendered = codes.detach(), rendered.detach()


class EncoderTask(Task[Faces]):
    """Train the encoder of `model` in place; validate each step on held-out images."""

    def __init__(
        self,
        model: RestyleModel,
        plan: EncoderPlan,
        held_out: Faces,
        *,
        start: Start | None = None,  # default: the average
        augment: Callable[[Faces], Faces] | None = None,
        networks: Mapping[str, FeatureNetwork] | None = None,
        adversary: Adversary | None = None,
        previous: Continuation | None = None,  # training that the model comes from
        earlier_plan: EncoderPlan | None = None,  # for checkpoints without a defaults version
    ) -> None:
        model.generator.requires_grad_(False)
        self.network: nn.Module = model.encoder.requires_grad_(True)
        self.plan, self.held_out, self.adversary = plan, held_out, adversary
        self.previous, self.earlier_plan = previous, earlier_plan
        staged_plans = [option for option in (plan, earlier_plan) if option and option.stages]
        late = staged_plans or (previous and previous.optimiser)
        self.late = late_heads(self.network) if late else []
        self.networks, self.augment = networks or {}, augment
        self.start = start or average_start(model)
        size = model.frame_size if plan.full_size else model.input_size
        self.render = partial(render, model, size)
        self.chunked_render = partial(render_in_chunks, model, size)
        self.latent_avg, self.n_styles = model.latent_avg, model.n_styles
        self.single_pass = model.single_pass
        self._codes: Tensor | None = None

    def _stage(self, train_state: TrainState) -> int | None:
        stages = self.plan.stages
        images = train_state.images + self.plan.images_before
        return stages.at(images, self.n_styles) if stages else None

    def accumulate(self, batch: Faces, train_state: TrainState) -> dict[str, Tensor]:
        """See `Task.accumulate`; returns the losses of the first and of the last step."""
        # After the loop has seeded the batch, so that a resumed run makes the same draws.
        batch = self.augment(batch) if self.augment else batch
        batch = Faces(*(images.to(self.latent_avg.device) for images in batch))
        steps, stage = self.plan.steps_at(train_state), self._stage(train_state)
        compare = ImageLoss(self.plan.images, batch.target, self.networks)
        start = self.start(batch.input)
        rounds = refine(
            self.network, self.render, start, batch.input, steps,
            single_pass=self.single_pass, spread=self.plan.spread, stage=stage,
        )  # fmt: skip
        losses: dict[str, Tensor] = {}
        for step, (codes, rendered) in enumerate(rounds, start=1):
            terms = compare(rendered)
            terms = self._with_code_terms(terms, codes, stage)
            share = self.plan.first_step_share if step == 1 else 1.0
            (share * terms["loss"]).backward()
            if step in (1, steps):
                name = "last" if step == steps else "first"
                losses |= {f"{term}_{name}": value.detach() for term, value in terms.items()}
            self._codes = codes.detach()
        if stage is not None:
            clear_gradients(self.late[stage:])
        return losses

    def _with_code_terms(
        self, terms: dict[str, Tensor], codes: Tensor, stage: int | None
    ) -> dict[str, Tensor]:
        """Add the terms on the codes to `terms` and, weighted, to its `loss`."""
        plan, code_terms, weights = self.plan, {}, {}
        if plan.w_norm:
            code_terms["w_norm"] = w_norm(codes, self.latent_avg)
            weights["w_norm"] = plan.w_norm
        if plan.delta_norm:
            free_rows = self.n_styles - 1 if stage is None else stage
            code_terms["delta_norm"] = delta_norms(codes, free_rows)
            weights["delta_norm"] = plan.delta_norm
        if self.adversary:
            code_terms["realness"] = self.adversary.penalty(self._distinct_rows(codes, stage))
            weights["realness"] = self.adversary.plan.weight
        total = sum((weights[name] * term for name, term in code_terms.items()), terms["loss"])
        return {**terms, **code_terms, "loss": total}

    def _distinct_rows(self, codes: Tensor, stage: int | None) -> Tensor:
        """Return the rows for the discriminator; later rows repeat the first one."""
        return codes if stage is None else codes[:, : stage + 1]

    def after_step(self, train_state: TrainState, group: Group) -> dict[str, Tensor]:
        """Train the discriminator on the last refinement step's codes; see `Task.after_step`."""
        if not self.adversary or self._codes is None:
            return {}
        rows = self._distinct_rows(self._codes, self._stage(train_state))
        return self.adversary.step(rows, train_state.batches, group)

    def begin(self, optimiser: torch.optim.Optimizer) -> None:
        """Load optimiser and discriminator of the training continued; see `Task.begin`."""
        if not self.previous:
            return
        if self.previous.optimiser:
            restore_optimiser(optimiser, self.previous.optimiser)
        if self.adversary and self.previous.discriminator:
            optimiser_state = self.previous.discriminator_optimiser
            self.adversary.take_over(self.previous.discriminator, optimiser_state)

    def state(self) -> dict[str, Any]:
        """See `Task.state`; includes the version of the default weights and stages."""
        return {"defaults": DEFAULTS, **(self.adversary.state() if self.adversary else {})}

    def restore(self, state: Mapping[str, Any]) -> None:
        """See `Task.restore`; a training of earlier defaults continues with them."""
        if "defaults" not in state and self.earlier_plan:
            self.plan = self.earlier_plan
        if self.adversary:
            self.adversary.restore(state)

    @torch.no_grad()
    def validate(self, network: nn.Module) -> Validation:
        """Return mean L2 and LPIPS of each step over the held-out faces, with all rows free."""
        device, total = self.latent_avg.device, len(self.held_out.input)
        sums = torch.zeros(2, self.plan.steps)
        for parts in zip(*(x.split(VALIDATION_BATCH) for x in self.held_out), strict=True):
            inputs, targets = (part.to(device) for part in parts)
            for step, (_, rendered) in enumerate(self._refined(network, inputs)):
                l2, lpips = distances(rendered, targets)
                sums[:, step] += torch.stack([l2.sum(), lpips.sum()]).cpu()
        l2_means, lpips_means = (sums / total).tolist()
        return {
            "l2": [round(value, 4) for value in l2_means],
            "lpips": [round(value, 4) for value in lpips_means],
        }

    def _refined(self, network: nn.Module, inputs: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        start = self.start(inputs)
        return refine(
            network, self.chunked_render, start, inputs, self.plan.steps,
            single_pass=self.single_pass, spread=self.plan.spread,
        )  # fmt: skip

    def score(self, validation: Validation) -> float:
        """Return LPIPS of the last step."""
        per_step = validation["lpips"]
        return per_step[-1] if isinstance(per_step, list) else per_step

    @torch.no_grad()
    def pictures(self, network: nn.Module) -> Tensor:
        """Return one row per face, of six: input, start, every step, and target in pairs."""
        inputs = self.held_out.input[:6].to(self.latent_avg.device)
        _, initial = self.start(inputs)
        steps = [rendered for _, rendered in self._refined(network, inputs)]
        targets = self.held_out.target
        paired = [] if targets is self.held_out.input else [targets[:6].to(inputs.device)]
        size = steps[0].shape[-2:]
        shown = [F.interpolate(images, size=size) for images in (inputs, initial)]
        return torch.stack([*shown, *steps, *paired], dim=1)


def distances(rendered: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return L2 [n] and LPIPS [n]; images below 128 px are enlarged to that for LPIPS."""
    clamped = rendered.clamp(-1, 1)
    l2 = mean_squared_error(clamped, target)
    size = [max(128, side) for side in target.shape[-2:]]
    large = [F.interpolate(images, size=size, mode="bilinear") for images in (clamped, target)]
    return l2, load_lpips(str(target.device))(*large)
