"""Trains a ReStyle encoder for a frozen generator, by the paper's scheme.

Each batch runs N refinement steps; each step has its own loss and its own gradient, and hands its
code and image on without one (Alaluf et al. 2021, sec. 3.2 and 3.4). One optimiser step a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.inversion import average_image, invert
from pipeline.inversion.render import pooled, render_each
from pipeline.inversion.restyle_loop import start_codes
from pipeline.metrics.lpips import load_lpips
from pipeline.models import RestyleModel
from pipeline.training.distributed import Group
from pipeline.training.e4e import (
    Adversary,
    Stages,
    delta_norms,
    late_heads,
    leave_out,
    staged,
    w_norm,
)
from pipeline.training.losses import FeatureNetwork, ImageLoss, ImageWeights
from pipeline.training.official_resume import Continuation, restore_optimiser
from pipeline.training.trainer import Moment, Task, Validation

DEFAULTS = 2  # version of the weights and stages that hold where no setting names them
VALIDATION_BATCH = 50  # faces that the encoder is shown at once


class Faces(NamedTuple):
    """A batch [n, 3, h, w] in [-1, 1] of the encoder's input size."""

    seen: Tensor  # what the encoder is shown
    wanted: Tensor  # what the generator is to make of it; the same but where styles are learnt


class Start(Protocol):
    """Where refinement begins."""

    def __call__(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Codes [n, n_styles, 512] and their images [n, 3, h, w] for a batch."""
        ...


@dataclass(frozen=True)
class AverageStart:
    """Every face begins as the average one."""

    codes: Tensor  # [n_styles, 512]
    image: Tensor  # [3, h, w]

    @classmethod
    def of(cls, model: RestyleModel) -> AverageStart:
        """The code that the model's first step adds to, and the average image."""
        return cls(start_codes(model, 1, None)[0], average_image(model))

    def __call__(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        """See `Start`."""
        n = len(seen)
        return self.codes.expand(n, -1, -1), self.image.expand(n, -1, -1, -1)


@dataclass(frozen=True)
class ModelStart:
    """Every face begins as another model's inversion: encoder bootstrapping (ReStyle, sec. 5)."""

    model: RestyleModel
    steps: int = 1

    def __call__(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        """See `Start`."""
        inversion = invert(self.model, seen, steps=self.steps)
        return inversion.w_plus[:, -1], inversion.step_images[:, -1]


@dataclass(frozen=True)
class EncoderPlan:
    """How each batch is judged; the loop's own plan says how many there are."""

    steps: int = 5
    early_steps: int | None = None  # in the first half of the training; None: all of them
    first_step_share: float = 1.0  # what the first step's loss counts: it begins, others end
    images: ImageWeights = field(default_factory=lambda: ImageWeights(l2=1.0, lpips=0.8))
    w_norm: float = 0.0
    delta_norm: float = 0.0  # e4e: 2e-4
    stages: Stages | None = None  # e4e: one row after another
    images_before: int = 0  # seen by the training that this one goes on with; stages count them
    spread: float = 1.0  # unit of the encoder's output; a fresh encoder learns faster in W's own

    def steps_at(self, moment: Moment) -> int:
        """Refinement steps of a batch."""
        early = 2 * moment.images < moment.planned
        return self.early_steps if early and self.early_steps else self.steps


def rendering(model: RestyleModel) -> Callable[[Tensor], Tensor]:
    """Codes [n, n_styles, 512] to images [n, 3, *input_size], with gradients."""

    def render(codes: Tensor) -> Tensor:
        frame = model.frame(model.generator(codes))
        return F.adaptive_avg_pool2d(frame, model.input_size)

    return render


def rendering_few(model: RestyleModel) -> Callable[[Tensor], Tensor]:
    """`rendering` without gradients, with as many faces at once as an inversion has.

    Fifty faces of 1024 px would take 35 GB.
    """

    def render(codes: Tensor) -> Tensor:
        return torch.stack([pooled(frame, model.input_size) for frame in render_each(model, codes)])

    return render


def refine(
    encoder: nn.Module,
    render: Callable[[Tensor], Tensor],
    start: tuple[Tensor, Tensor],  # codes [n, n_styles, 512], images [n, 3, h, w]
    seen: Tensor,  # [n, 3, h, w]
    steps: int,
    *,
    one_pass: bool = False,  # the encoder sees no reconstruction
    spread: float = 1.0,
    stage: int | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield each step's codes and reconstruction, with that step's graph alone."""
    codes, shown = start
    for _ in range(steps):
        residual = encoder(seen if one_pass else torch.cat([seen, shown], dim=1)) * spread
        codes = codes + (residual if stage is None else staged(residual, stage))
        made = render(codes)
        yield codes, made
        codes, shown = codes.detach(), made.detach()


class EncoderTask(Task[Faces]):
    """The encoder of `model`, trained in place; validated per step on images kept out."""

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
        previous: Continuation | None = None,  # the training that the model comes from
        earlier_plan: EncoderPlan | None = None,  # of checkpoints that say no defaults; see `state`
    ) -> None:
        model.generator.requires_grad_(False)
        self.network: nn.Module = model.encoder.requires_grad_(True)
        self.plan, self.held_out, self.adversary = plan, held_out, adversary
        self.previous, self.earlier_plan = previous, earlier_plan
        staged_plans = [one for one in (plan, earlier_plan) if one and one.stages]
        late = staged_plans or (previous and previous.optimiser)
        self.late = late_heads(self.network) if late else []
        self.networks, self.augment = networks or {}, augment
        self.start = start or AverageStart.of(model)
        self.render, self.render_few = rendering(model), rendering_few(model)
        self.latent_avg, self.n_styles = model.latent_avg, model.n_styles
        self.one_pass = model.single_pass
        self._codes: Tensor | None = None

    def _stage(self, moment: Moment) -> int | None:
        stages = self.plan.stages
        images = moment.images + self.plan.images_before
        return stages.at(images, self.n_styles) if stages else None

    def accumulate(self, batch: Faces, moment: Moment) -> dict[str, Tensor]:
        """See `Task.accumulate`; the losses of the first and of the last step."""
        # Here, after the loop has seeded the batch, so that a resumed run draws the same.
        batch = self.augment(batch) if self.augment else batch
        batch = Faces(*(images.to(self.latent_avg.device) for images in batch))
        steps, stage = self.plan.steps_at(moment), self._stage(moment)
        compare = ImageLoss(self.plan.images, batch.wanted, self.networks)
        start = self.start(batch.seen)
        rounds = refine(
            self.network, self.render, start, batch.seen, steps,
            one_pass=self.one_pass, spread=self.plan.spread, stage=stage,
        )  # fmt: skip
        losses: dict[str, Tensor] = {}
        for step, (codes, made) in enumerate(rounds, start=1):
            terms = compare(made)
            terms = self._with_code_terms(terms, codes, stage)
            share = self.plan.first_step_share if step == 1 else 1.0
            (share * terms["loss"]).backward()
            if step in (1, steps):
                name = "last" if step == steps else "first"
                losses |= {f"{term}_{name}": value.detach() for term, value in terms.items()}
            self._codes = codes.detach()
        if stage is not None:
            leave_out(self.late[stage:])
        return losses

    def _with_code_terms(
        self, terms: dict[str, Tensor], codes: Tensor, stage: int | None
    ) -> dict[str, Tensor]:
        """`terms` with those that look at the codes, all in `loss`."""
        plan, more, weights = self.plan, {}, {}
        if plan.w_norm:
            more["w_norm"], weights["w_norm"] = w_norm(codes, self.latent_avg), plan.w_norm
        if plan.delta_norm:
            reached = self.n_styles - 1 if stage is None else stage
            more["delta_norm"] = delta_norms(codes, reached)
            weights["delta_norm"] = plan.delta_norm
        if self.adversary:
            more["realness"] = self.adversary.penalty(self._judged(codes, stage))
            weights["realness"] = self.adversary.plan.weight
        total = sum((weights[name] * term for name, term in more.items()), terms["loss"])
        return {**terms, **more, "loss": total}

    def _judged(self, codes: Tensor, stage: int | None) -> Tensor:
        """The rows that the discriminator sees: those that differ."""
        return codes if stage is None else codes[:, : stage + 1]

    def follow(self, moment: Moment, group: Group) -> dict[str, Tensor]:
        """See `Task.follow`: the discriminator learns from the last step's codes."""
        if not self.adversary or self._codes is None:
            return {}
        judged = self._judged(self._codes, self._stage(moment))
        return self.adversary.learn(judged, moment.batches, group)

    def begin(self, optimiser: torch.optim.Optimizer) -> None:
        """See `Task.begin`: take over what the model's own training has left."""
        if not self.previous:
            return
        if self.previous.optimiser:
            restore_optimiser(optimiser, self.previous.optimiser)
        if self.adversary and self.previous.discriminator:
            found = self.previous.discriminator_optimiser
            self.adversary.take_over(self.previous.discriminator, found)

    def state(self) -> dict[str, Any]:
        """See `Task.state`; also the version of the default weights and stages."""
        return {"defaults": DEFAULTS, **(self.adversary.state() if self.adversary else {})}

    def restore(self, state: Mapping[str, Any]) -> None:
        """See `Task.restore`; a training of earlier defaults goes on under these."""
        if "defaults" not in state and self.earlier_plan:
            self.plan = self.earlier_plan
        if self.adversary:
            self.adversary.restore(state)

    @torch.no_grad()
    def validate(self, network: nn.Module) -> Validation:
        """Mean L2 and LPIPS of each step over the held-out faces, all rows free."""
        device, total = self.latent_avg.device, len(self.held_out.seen)
        sums = torch.zeros(2, self.plan.steps)
        for parts in zip(*(x.split(VALIDATION_BATCH) for x in self.held_out), strict=True):
            seen, wanted = (part.to(device) for part in parts)
            for step, (_, made) in enumerate(self._refined(network, seen)):
                l2, lpips = distances(made, wanted)
                sums[:, step] += torch.stack([l2.sum(), lpips.sum()]).cpu()
        l2_means, lpips_means = (sums / total).tolist()
        return {
            "l2": [round(value, 4) for value in l2_means],
            "lpips": [round(value, 4) for value in lpips_means],
        }

    def _refined(self, network: nn.Module, seen: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        start = self.start(seen)
        return refine(
            network, self.render_few, start, seen, self.plan.steps,
            one_pass=self.one_pass, spread=self.plan.spread,
        )  # fmt: skip

    def score(self, validation: Validation) -> float:
        """LPIPS of the last step."""
        per_step = validation["lpips"]
        return per_step[-1] if isinstance(per_step, list) else per_step

    @torch.no_grad()
    def pictures(self, network: nn.Module) -> Tensor:
        """Rows of input, start, every step, and target where it is another, of six faces."""
        seen = self.held_out.seen[:6].to(self.latent_avg.device)
        _, begun = self.start(seen)
        steps = [made for _, made in self._refined(network, seen)]
        wanted = self.held_out.wanted
        apart = [] if wanted is self.held_out.seen else [wanted[:6].to(seen.device)]
        return torch.stack([seen, begun, *steps, *apart], dim=1)


def distances(made: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """L2 [n] and LPIPS [n], small images enlarged to 128 px for the latter."""
    shown = made.clamp(-1, 1)
    l2 = (shown - wanted).square().mean(dim=(1, 2, 3))
    size = [max(128, side) for side in wanted.shape[-2:]]
    large = [F.interpolate(images, size=size, mode="bilinear") for images in (shown, wanted)]
    return l2, load_lpips(str(wanted.device))(*large)
