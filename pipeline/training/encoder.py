"""Trains a ReStyle encoder for a frozen generator, by the paper's scheme.

Each batch runs N refinement steps; each step has its own loss and its own gradient, and hands its
code and image on without one (Alaluf et al. 2021, sec. 3.2 and 3.4). One optimiser step a batch.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.metrics.lpips import load_lpips
from pipeline.models.compact import CompactEncoder
from pipeline.models.stylegan2 import Generator
from pipeline.training.augment import augment
from pipeline.training.generator import random_batches
from pipeline.training.losses import ShiftedLpips
from pipeline.training.pairs import Pairs, to_unit
from pipeline.training.parallel import join_group
from pipeline.training.schedule import (
    Log,
    average_into,
    learning_rate,
    load_checkpoint_file,
    save_checkpoint,
)


@dataclass(frozen=True)
class EncoderPlan:
    """How the encoder is trained."""

    images: int = 40_000  # images to see in all; may be raised when resuming
    batch: int = 8
    steps: int = 5
    early_steps: int = 3  # in the first half of the training, where later steps see little change
    peak_rate: float = 1.5e-3
    l2_weight: float = 2.0
    lpips_weight: float = 0.8
    first_step_weight: float = 0.4  # of the first step's loss: it has to begin, not to end well
    held_out: int = 300
    report_every: int = 2_000
    save_every: int = 1_000
    seed: int = 0


@dataclass(frozen=True)
class Start:
    """Where every inversion begins: the average code and its image."""

    latent_avg: Tensor  # [n_styles, 512]
    image: Tensor  # [3, s, s]

    @classmethod
    def of(cls, generator: Generator, latent_avg: Tensor) -> Start:
        """Render the average code once."""
        with torch.no_grad():
            return cls(latent_avg, generator(latent_avg[None])[0])


def refine(
    encoder: CompactEncoder,
    generator: Generator,
    start: Start,
    target: Tensor,
    steps: int,
    spread: float,
) -> Iterator[Tensor]:
    """Yield each step's reconstruction [n, 3, s, s], with its own graph, of `target`.

    The encoder's output is in units of `spread`, the standard deviation of W.
    """
    codes = start.latent_avg.expand(len(target), -1, -1)
    shown = start.image.expand(len(target), -1, -1, -1)
    for _ in range(steps):
        codes = codes + encoder(torch.cat([target, shown], dim=1)) * spread
        made = generator(codes)
        yield made
        codes, shown = codes.detach(), made.detach()


@torch.no_grad()
def evaluate_encoder(
    encoder: CompactEncoder,
    generator: Generator,
    start: Start,
    images: Tensor,
    steps: int,
    spread: float,
) -> dict[str, list[float]]:
    """Mean L2 and LPIPS (at 128 px) of each step over uint8 `images` [n, 3, s, s]."""
    sums = torch.zeros(2, steps)
    for chunk in images.split(50):
        target = to_unit(chunk)
        large = F.interpolate(target, size=128, mode="bilinear")
        for step, made in enumerate(refine(encoder, generator, start, target, steps, spread)):
            shown = made.clamp(-1, 1)
            sums[0, step] += (shown - target).square().mean() * len(chunk)
            scaled = F.interpolate(shown, size=128, mode="bilinear")
            sums[1, step] += load_lpips()(scaled, large).sum()
    l2, lpips = (sums / len(images)).tolist()
    return {"l2": [round(x, 4) for x in l2], "lpips": [round(x, 4) for x in lpips]}


def train_batch(
    encoder: CompactEncoder,
    generator: Generator,
    start: Start,
    target: Tensor,
    plan: EncoderPlan,
    spread: float,
    steps: int,
) -> dict[str, Tensor]:
    """Accumulate the gradient of all steps on one batch; returns the losses of first and last."""
    losses: dict[str, Tensor] = {}
    perceptual = ShiftedLpips(load_lpips(), target)
    rounds = refine(encoder, generator, start, target, steps, spread)
    for step, made in enumerate(rounds, start=1):
        l2 = F.mse_loss(made, target)
        lpips = perceptual(made).mean()
        share = plan.first_step_weight if step == 1 else 1.0
        (share * (plan.l2_weight * l2 + plan.lpips_weight * lpips)).backward()
        if step in (1, steps):
            name = "first" if step == 1 else "last"
            losses |= {f"l2_{name}": l2.detach(), f"lpips_{name}": lpips.detach()}
    return losses


def train_encoder(
    plan: EncoderPlan, generator: Generator, latent_avg: Tensor, pairs: Pairs, folder: Path
) -> CompactEncoder:
    """Train an encoder for `generator`, resuming from `folder`; its output is a residual in W.

    Writes `encoder.pt` (checkpoint) and `encoder.jsonl` (one line a report) to `folder`.
    """
    group = join_group()
    torch.manual_seed(plan.seed)
    generator.requires_grad_(False)
    train, held_out = pairs.split(plan.held_out)
    spread = float((train.w - train.w.mean(dim=0)).std())
    start = Start.of(generator, latent_avg)
    live = CompactEncoder(generator.n_styles, generator.size)
    average = copy.deepcopy(live).requires_grad_(False)
    optimiser = torch.optim.Adam(live.parameters(), lr=plan.peak_rate, betas=(0.9, 0.99))
    checkpoint, log = folder / "encoder.pt", Log(folder / "encoder.jsonl")
    state: dict[str, Any] = load_checkpoint_file(checkpoint) or {"batches": 0}
    if state["batches"]:
        live.load_state_dict(state["live"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
    batches = int(state["batches"])
    order = random_batches(len(train), plan.batch, plan.seed)
    for index in itertools.islice(order, batches, plan.images // plan.batch):
        # By batch, so that a resumed run draws what an unbroken one would have drawn.
        torch.manual_seed(plan.seed + batches * group.size + group.rank)
        for weights in optimiser.param_groups:
            weights["lr"] = learning_rate(
                plan.peak_rate, batches, batches * plan.batch / plan.images
            )
        target = augment(to_unit(train.images[group.share(index)]))
        optimiser.zero_grad(set_to_none=True)
        early = 2 * batches * plan.batch < plan.images
        steps = plan.early_steps if early else plan.steps
        losses = train_batch(live, generator, start, target, plan, spread, steps)
        group.average_gradients(live)
        torch.nn.utils.clip_grad_norm_(live.parameters(), 5.0)
        optimiser.step()
        average_into(average, live, batches)
        log.add(losses)
        batches += 1
        seen = batches * plan.batch
        if not group.leads:
            continue
        if seen % plan.save_every < plan.batch or seen + plan.batch > plan.images:
            save_checkpoint(
                checkpoint,
                {
                    "batches": batches,
                    "live": live.state_dict(),
                    "average": average.state_dict(),
                    "optimiser": optimiser.state_dict(),
                },
            )
        if seen % plan.report_every < plan.batch:
            held = evaluate_encoder(average, generator, start, held_out.images, plan.steps, spread)
            log.report(images=seen, **{f"held_out_{k}": v for k, v in held.items()})
    scale_output(average, spread)
    return average


@torch.no_grad()
def scale_output(encoder: CompactEncoder, spread: float) -> None:
    """Fold `spread` into the heads in place: the output becomes a residual in W."""
    encoder.heads.matrix.mul_(spread)
    encoder.heads.bias.mul_(spread)
