"""Fits a small StyleGAN2 to (w, image) pairs: a generator in the W space of the pairs' source.

The style layers see W centred and divided by one number while training; both are folded into the
layers at the end, so the finished generator takes W as it is.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.metrics.lpips import load_lpips
from pipeline.models.stylegan2 import EqualLinear, Generator, ModulatedConv2d
from pipeline.training.losses import ShiftedLpips, block_means
from pipeline.training.pairs import Pairs
from pipeline.training.parallel import join_group
from pipeline.training.schedule import (
    Log,
    average_into,
    learning_rate,
    load_checkpoint_file,
    save_checkpoint,
)


@dataclass(frozen=True)
class GeneratorPlan:
    """How the generator is fitted."""

    channels: dict[int, int] = field(
        default_factory=lambda: {4: 256, 8: 256, 16: 192, 32: 96, 64: 48}
    )
    images: int = 70_000  # images to see in all; may be raised when resuming
    batch: int = 16
    peak_rate: float = 2e-2
    held_out: int = 300
    report_every: int = 4_000  # images between evaluations
    save_every: int = 2_000  # images between checkpoints
    seed: int = 0


@dataclass(frozen=True)
class LatentScale:
    """The affine map between W and the space the style layers are trained in."""

    mean: Tensor  # [512]
    spread: float

    @classmethod
    def of(cls, w: Tensor) -> LatentScale:
        """Centre and overall standard deviation of the codes `w` [n, 512]."""
        mean = w.mean(dim=0)
        return cls(mean, float((w - mean).std()))

    def normalise(self, w: Tensor) -> Tensor:
        """W to the training space, any shape [..., 512]."""
        return (w - self.mean) / self.spread

    def fold_into(self, generator: Generator) -> None:
        """Rewrite the style layers in place so that they take W instead of normalised codes."""
        for module in generator.modules():
            if isinstance(module, ModulatedConv2d):
                self._fold_layer(module.modulation)

    def _fold_layer(self, layer: EqualLinear) -> None:
        with torch.no_grad():
            layer.weight.div_(self.spread)
            layer.bias.sub_(F.linear(self.mean, layer.weight * layer.scale))


def pair_losses(made: Tensor, target: Tensor) -> dict[str, Tensor]:
    """The terms of the fit and their weighted sum `loss`, scalars."""
    terms = {
        "l1": F.l1_loss(made, target),
        "blocks": F.l1_loss(block_means(made), block_means(target)),
        "lpips": ShiftedLpips(load_lpips(), target)(made).mean(),
    }
    return {**terms, "loss": 1.5 * terms["l1"] + terms["blocks"] + 0.5 * terms["lpips"]}


@torch.no_grad()
def evaluate_generator(generator: Generator, pairs: Pairs, scale: LatentScale) -> dict[str, float]:
    """Mean L2, L1 and LPIPS (at 128 px) of `generator` over `pairs`."""
    sums = {"l2": 0.0, "l1": 0.0, "lpips": 0.0}
    for index in torch.arange(len(pairs)).split(50):
        w, target = pairs.batch(index)
        made = generator(repeat_rows(scale.normalise(w), generator.n_styles)).clamp(-1, 1)
        large = [F.interpolate(x, size=128, mode="bilinear") for x in (made, target)]
        sums["l2"] += float((made - target).square().mean()) * len(index)
        sums["l1"] += float((made - target).abs().mean()) * len(index)
        sums["lpips"] += float(load_lpips()(*large).sum())
    return {name: round(total / len(pairs), 5) for name, total in sums.items()}


def repeat_rows(w: Tensor, n_styles: int) -> Tensor:
    """W [n, 512] to W+ [n, n_styles, 512], every row the same."""
    return w[:, None].expand(-1, n_styles, -1)


def random_batches(count: int, batch: int, seed: int) -> Iterator[Tensor]:
    """Index tensors [batch], epoch after epoch, each epoch in a fresh order."""
    for epoch in itertools.count():
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed + epoch))
        yield from order[: count - count % batch].split(batch)


def fit_generator(plan: GeneratorPlan, pairs: Pairs, folder: Path) -> Generator:
    """Fit a generator to `pairs`, resuming from `folder`, and return it with W as its input.

    Writes `generator.pt` (checkpoint) and `generator.jsonl` (one line a report) to `folder`.
    """
    group = join_group()
    torch.manual_seed(plan.seed)
    train, held_out = pairs.split(plan.held_out)
    scale = LatentScale.of(train.w)
    live = Generator(plan.channels)
    average = copy.deepcopy(live).requires_grad_(False)
    optimiser = torch.optim.Adam(live.parameters(), lr=plan.peak_rate, betas=(0.9, 0.99))
    checkpoint, log = folder / "generator.pt", Log(folder / "generator.jsonl")
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
        w, target = train.batch(group.share(index))
        losses = pair_losses(live(repeat_rows(scale.normalise(w), live.n_styles)), target)
        optimiser.zero_grad(set_to_none=True)
        losses["loss"].backward()
        group.average_gradients(live)
        optimiser.step()
        average_into(average, live, batches)
        log.add({name: value.detach() for name, value in losses.items()})
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
            held = evaluate_generator(average, held_out, scale)
            log.report(images=seen, **{f"held_out_{k}": v for k, v in held.items()})
    scale.fold_into(average)
    return average
