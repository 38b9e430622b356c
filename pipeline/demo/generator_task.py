"""Fit a small StyleGAN2 to (w, image) pairs: a generator for the W space of the pairs' source.

While training, the style layers get W centred and divided by one number. Both are folded into the
layers at the end, so that the final generator takes W itself.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.demo.discriminator import DiscriminatorPlan, ImageAdversary
from pipeline.metrics.lpips import load_lpips
from pipeline.models.stylegan2 import EqualLinear, Generator, ModulatedConv2d
from pipeline.storage import Store
from pipeline.training.distributed import Group, join_group
from pipeline.training.latent_pairs import LatentPairs
from pipeline.training.losses import ImageLoss, ImageWeights
from pipeline.training.trainer import LoopPlan, Task, TrainState, Validation, train

HELD_OUT = 300
CHANNELS = {4: 256, 8: 256, 16: 192, 32: 96, 64: 48}
GROWN_CHANNELS = {**CHANNELS, 128: 32}
WEIGHTS = ImageWeights(l1=1.5, blocks=1.0, lpips=0.5)
PLAN = LoopPlan(images=70_000, batch=16, max_lr=2e-2, report_every=4_000, save_every=2_000)
GROWTH_PLAN = replace(PLAN, images=25_600, max_lr=8e-3)

CodedImages = tuple[Tensor, Tensor]  # W codes [b, 512], images [b, 3, s, s] in [-1, 1]


@dataclass(frozen=True)
class LatentScale:
    """Affine map between W and the space in which the style layers are trained."""

    mean: Tensor  # [512]
    spread: float

    @classmethod
    def of(cls, w: Tensor) -> LatentScale:
        """Return the scale of codes `w` [n, 512]: their mean and overall standard deviation."""
        mean = w.mean(dim=0)
        return cls(mean, float((w - mean).std()))

    @property
    def inverse(self) -> LatentScale:
        """Inverse map: folding it in undoes the folding of this one."""
        return LatentScale(-self.mean / self.spread, 1 / self.spread)

    def normalise(self, w: Tensor) -> Tensor:
        """Map W, of any shape [..., 512], to the training space."""
        return (w - self.mean) / self.spread

    @torch.no_grad()
    def fold_into(self, generator: Generator) -> None:
        """Rewrite the style layers in place so that they take W instead of normalised codes."""
        for module in generator.modules():
            if isinstance(module, ModulatedConv2d):
                self._fold_layer(module.modulation)

    def _fold_layer(self, layer: EqualLinear) -> None:
        layer.weight.div_(self.spread)
        layer.bias.sub_(F.linear(self.mean, layer.weight * layer.scale))


@torch.no_grad()
def evaluate_generator(
    generator: Generator, pairs: LatentPairs, scale: LatentScale
) -> dict[str, float]:
    """Return mean L2, L1 and LPIPS (at 128 px) of `generator` over `pairs`."""
    sums = {"l2": 0.0, "l1": 0.0, "lpips": 0.0}
    for index in torch.arange(len(pairs)).split(50):
        w, target = pairs.batch(index)
        rendered = generator(repeat_rows(scale.normalise(w), generator.n_styles)).clamp(-1, 1)
        large = [F.interpolate(x, size=128, mode="bilinear") for x in (rendered, target)]
        sums["l2"] += float((rendered - target).square().mean()) * len(index)
        sums["l1"] += float((rendered - target).abs().mean()) * len(index)
        sums["lpips"] += float(load_lpips()(*large).sum())
    return {name: round(total / len(pairs), 5) for name, total in sums.items()}


def repeat_rows(w: Tensor, n_styles: int) -> Tensor:
    """Return W [n, 512] as W+ [n, n_styles, 512] with equal rows."""
    return w[:, None].expand(-1, n_styles, -1)


class GeneratorTask(Task[CodedImages]):
    """Train a generator to render each code as its image; validate on held-out pairs."""

    def __init__(
        self,
        generator: Generator,  # takes normalised codes
        scale: LatentScale,
        held_out: LatentPairs,
        adversary: ImageAdversary | None = None,
    ) -> None:
        self.network: nn.Module = generator
        self.scale, self.held_out = scale, held_out
        self.n_styles, self.adversary = generator.n_styles, adversary
        self._images: tuple[Tensor, Tensor] | None = None  # rendered and real, of the last batch

    def _codes(self, w: Tensor) -> Tensor:
        return repeat_rows(self.scale.normalise(w), self.n_styles)

    def accumulate(self, batch: CodedImages, train_state: TrainState) -> dict[str, Tensor]:
        """See `Task.accumulate`."""
        w, target = batch
        # The loss draws its shift before the generator its noise: the order fixes both draws.
        loss = ImageLoss(WEIGHTS, target)
        rendered = self.network(self._codes(w))
        terms = loss(rendered)
        weight = self.adversary.plan.weight_at(train_state.progress) if self.adversary else 0.0
        if self.adversary and weight:
            terms["realness"] = self.adversary.penalty(rendered)
            terms["loss"] = terms["loss"] + weight * terms["realness"]
        terms["loss"].backward()
        self._images = (rendered.detach(), target)
        return {name: value.detach() for name, value in terms.items()}

    def after_step(self, train_state: TrainState, group: Group) -> dict[str, Tensor]:
        """Train the discriminator on the last batch; see `Task.after_step`."""
        if not self.adversary or self._images is None:
            return {}
        return self.adversary.step(*self._images, train_state, group)

    def state(self) -> dict[str, Any]:
        """See `Task.state`."""
        return self.adversary.state() if self.adversary else {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """See `Task.restore`."""
        if self.adversary:
            self.adversary.restore(state)

    def validate(self, network: nn.Module) -> Validation:
        """See `Task.validate`."""
        return evaluate_generator(cast(Generator, network), self.held_out, self.scale)

    def score(self, validation: Validation) -> float:
        """Return LPIPS; by L2 the most blurred faces would win."""
        return float(validation["lpips"])  # type: ignore[arg-type]

    @torch.no_grad()
    def pictures(self, network: nn.Module) -> Tensor:
        """Return eight held-out images and, below, their reconstructions: [2, 8, 3, s, s]."""
        w, target = self.held_out.batch(torch.arange(min(8, len(self.held_out))))
        return torch.stack([target, network(self._codes(w))])


def fit_generator(
    plan: LoopPlan,
    pairs: LatentPairs,
    folder: str,  # any fsspec URI
    *,
    channels: dict[int, int] | None = None,
    start: Generator | None = None,  # initial weights; takes W
    held_out: int = HELD_OUT,
    adversarial: DiscriminatorPlan | None = None,
    stage: str = "generator",
) -> Generator:
    """Fit a generator to `pairs`, resuming from `folder`, and return it with W as its input.

    The last `held_out` pairs are for validation. Writes `<stage>.pt` (checkpoint), `<stage>.jsonl`
    (one line per report) and pictures to `folder`.
    """
    group, store = join_group(), Store(folder)
    torch.manual_seed(plan.seed)
    training, validation = pairs.split(held_out)
    scale = LatentScale.of(training.w)
    generator = copy.deepcopy(start) if start else Generator(channels or CHANNELS)
    if start:
        scale.inverse.fold_into(generator.requires_grad_(True))
    adversary = ImageAdversary(adversarial, generator.size) if adversarial else None
    task = GeneratorTask(generator, scale, validation, adversary=adversary)
    fitted = train(plan, task, len(training), training.batch, store, stage, group).network
    assert isinstance(fitted, Generator)
    scale.fold_into(fitted)
    return fitted
