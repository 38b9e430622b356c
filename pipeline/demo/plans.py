"""The plans of the two embedded demo models, and the folders that their stages are built in."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from pipeline.demo import generator_task as fitting
from pipeline.models import RestyleModel
from pipeline.storage import Store
from pipeline.training.encoder_task import EncoderPlan
from pipeline.training.losses import ImageWeights
from pipeline.training.resume_check import begun_with, refuse_others
from pipeline.training.trainer import LoopPlan

SETTINGS = "_plan.json"
SOURCE = (
    "a small StyleGAN2 fitted to (w, image) pairs that the generator inside the random-face "
    "2021.7.21.1 wheel rendered, and a compact ReStyle-pSp encoder trained for it"
)
CARTOON_SOURCE = (
    "the demo model's generator, fine-tuned to the same pairs in a computed cartoon look, and its "
    "encoder, fine-tuned to see the photograph and to be judged by the cartoon of it"
)


@dataclass(frozen=True)
class DemoPlan:
    """How one demo model is made."""

    name: str
    domain: str
    source: str
    generator: LoopPlan
    encoder: LoopPlan
    rounds: EncoderPlan
    channels: dict[int, int]
    held_out: int = fitting.HELD_OUT


FACES = DemoPlan(
    name="demo",
    domain="faces",
    source=SOURCE,
    generator=fitting.PLAN,
    encoder=LoopPlan(images=40_000, batch=8, peak_rate=1.5e-3, clip=5.0),
    rounds=EncoderPlan(
        steps=5,
        # Later steps see little change in the first half of the training.
        early_steps=3,
        first_step_share=0.4,
        images=ImageWeights(l2=2.0, lpips=0.8),
        # Rows that feed only demodulated layers have no scale of their own and would run away.
        w_norm=5e-4,
    ),
    channels=fitting.CHANNELS,
)
CARTOON = DemoPlan(
    name="demo-toonify",
    domain="toonify",
    source=CARTOON_SOURCE,
    generator=replace(
        fitting.PLAN,
        images=4_000,
        peak_rate=1e-2,
        horizon=150,
        report_every=2_000,
        save_every=500,
    ),
    encoder=replace(
        FACES.encoder,
        images=2_400,
        peak_rate=8e-4,
        warm_up=30,
        horizon=100,
        report_every=1_200,
        save_every=240,
    ),
    rounds=replace(FACES.rounds, steps=3, early_steps=None, first_step_share=1.0),
    channels=fitting.CHANNELS,
)
# What a build that goes on may be told anew, besides the words on the model's card.
MAY_CHANGE = {"source"} | {
    f"{stage}.{name}"
    for stage in ("generator", "encoder")
    for name in ("images", "report_every", "save_every", "save_minutes")
}


def check_plan(
    plan: DemoPlan, base: RestyleModel | None, folder: str, pairs: int | None = None
) -> None:
    """Refuse to go on in a folder with what was begun there from another plan, base or pairs.

    Their number is looked at where it is known. Raises what `settled.begun_with` and
    `settled.refuse_others` raise.
    """
    begun = begun_with(Store(folder), SETTINGS, "generator")
    if begun is not None:
        unknown = {"pairs"} if pairs is None else set()
        refuse_others(folder, begun, _settings(plan, base, pairs), MAY_CHANGE | unknown)


def keep_plan(plan: DemoPlan, base: RestyleModel | None, folder: str, pairs: int) -> None:
    """Write down what the stages in `folder` run with."""
    Store(folder).put(SETTINGS, json.dumps(_settings(plan, base, pairs), indent=2).encode())


def _settings(plan: DemoPlan, base: RestyleModel | None, pairs: int | None) -> dict[str, Any]:
    return asdict(plan) | {"base": base.fingerprint if base else None, "pairs": pairs}
