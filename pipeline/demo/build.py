"""The two embedded demo models: faces, and the same faces as cartoons, from (w, image) pairs."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.demo.cartoon import cartoon
from pipeline.demo.generator_task import LatentScale, fit_generator, repeat_rows
from pipeline.demo.plans import DemoPlan, check_plan, keep_plan
from pipeline.models import Architecture, ModelCard, RestyleModel
from pipeline.models.encoders import CompactEncoder
from pipeline.models.model import digest_of
from pipeline.models.pixels import from_levels, to_levels
from pipeline.models.stylegan2 import Generator
from pipeline.storage import Store
from pipeline.training.augment import augment, augment_alike
from pipeline.training.checkpoints import Checkpoints
from pipeline.training.data import random_batches
from pipeline.training.distributed import Group, join_group
from pipeline.training.encoder_task import EncoderTask, Faces, ModelStart
from pipeline.training.latent_pairs import Pairs
from pipeline.training.train_log import Journal, read_reports, total_seconds
from pipeline.training.trainer import LoopPlan, train

LICENCE = (
    "research use only: the pairs come from a network (the wheel says Apache-2.0) that descends "
    "from NVIDIA's StyleGAN2-FFHQ, which is licensed for non-commercial use"
)
WIDTH = 32  # of the encoder
LOOK_BATCH = 64


@dataclass(frozen=True)
class Drawn:
    """Pairs, and what the generator is to make of their codes: uint8 [n, 3, s, s].

    Without `looks` it is to make the images themselves.
    """

    pairs: Pairs
    looks: Tensor | None = None

    @property
    def as_pairs(self) -> Pairs:
        """Codes with the images that the generator is to make."""
        return self.pairs if self.looks is None else Pairs(self.pairs.w, self.looks)

    def split(self, held_out: int) -> tuple[Drawn, Drawn]:
        """All but the last `held_out`, and these."""
        known, unknown = self.pairs.split(held_out)
        if self.looks is None:
            return Drawn(known), Drawn(unknown)
        edge = len(known)
        return Drawn(known, self.looks[:edge]), Drawn(unknown, self.looks[edge:])

    def faces(self, index: Tensor) -> Faces:
        """Images at `index` as the encoder sees them and as they should come out."""
        seen = from_levels(self.pairs.images[index])
        return Faces(seen, seen if self.looks is None else from_levels(self.looks[index]))


def draw_cartoons(pairs: Pairs, size: int, folder: str) -> Drawn:
    """`pairs` reduced to `size`, with their cartoons, drawn at full size once and kept in `folder`.

    Two minutes and a half for 10,000 pairs of 128 px on one core. Drawn again for other images.
    """
    kept = Checkpoints(Store(folder), "looks")
    state, drawn_from = kept.load(), digest_of({"images": pairs.images}, f"at {size} px")
    if state is None or state.get("drawn_from") != drawn_from:
        looks = [
            _reduced(cartoon(from_levels(few)), size) for few in pairs.images.split(LOOK_BATCH)
        ]
        state = {"looks": torch.cat(looks), "drawn_from": drawn_from}
        kept.save(state)
    small = [_reduced(from_levels(few), size) for few in pairs.images.split(LOOK_BATCH)]
    return Drawn(Pairs(pairs.w, torch.cat(small)), state["looks"])


def _reduced(images: Tensor, size: int) -> Tensor:
    """[-1, 1] of any size to uint8 [n, 3, size, size] by block means."""
    return to_levels(F.adaptive_avg_pool2d(images, size))


def assemble(
    plan: DemoPlan,
    generator: Generator,
    encoder: CompactEncoder,
    latent_avg: Tensor,  # [n_styles, 512]
    notes: dict[str, Any] | None = None,
) -> RestyleModel:
    """The two networks as one model; `notes` is plain JSON for its card."""
    size = generator.size
    architecture = Architecture(
        encoder_type="CompactEncoder",
        encoder_arguments={
            "n_styles": generator.n_styles,
            "input_size": size,
            "input_channels": 6,
            "width": encoder.stem.out_channels,
        },
        channels=plan.channels,
        input_size=(size, size),
    )
    card = ModelCard(plan.name, plan.domain, plan.source, LICENCE, notes or {})
    model = RestyleModel(architecture, card)
    model.generator.load_state_dict(generator.state_dict())
    model.encoder.load_state_dict(encoder.state_dict())
    model.latent_avg.copy_(latent_avg)
    return model


@torch.no_grad()
def scale_output(encoder: CompactEncoder, spread: float) -> None:
    """Fold `spread` into the heads in place: the output becomes a residual in W."""
    encoder.heads.matrix.mul_(spread)
    encoder.heads.bias.mul_(spread)


def face_batches(drawn: Drawn, plan: LoopPlan, group: Group, first: int) -> Iterator[Faces]:
    """This process's share of every batch from batch `first` on."""
    for index in random_batches(len(drawn.pairs), plan.batch, plan.seed, first):
        yield drawn.faces(group.share(index))


def augment_faces(faces: Faces) -> Faces:
    """Both images of each face changed alike."""
    if faces.seen is faces.wanted:
        changed = augment(faces.seen)
        return Faces(changed, changed)
    return Faces(*augment_alike(*faces))


def train_encoder(
    plan: DemoPlan,
    generator: Generator,
    drawn: Drawn,
    folder: str,
    base: RestyleModel | None = None,
) -> RestyleModel:
    """The model of `generator` and an encoder trained for it, resuming from `folder`.

    With `base` the encoder begins as that model's, and every face as that model's first step.
    """
    group, store = join_group(), Store(folder)
    torch.manual_seed(plan.encoder.seed)
    known, unknown = drawn.split(plan.held_out)
    spread = LatentScale.of(known.pairs.w).spread
    encoder = CompactEncoder(generator.n_styles, generator.size, width=WIDTH)
    average = repeat_rows(known.pairs.w.mean(dim=0)[None], generator.n_styles)[0]
    if base:
        encoder.load_state_dict(base.encoder.state_dict())
        scale_output(encoder, 1 / spread)
        average = base.latent_avg
    model = assemble(plan, generator, encoder, average)
    task = EncoderTask(
        model,
        replace(plan.rounds, spread=spread),
        unknown.faces(torch.arange(plan.held_out)),
        start=ModelStart(base) if base else None,
        augment=augment_faces,
    )
    trained = train(
        plan.encoder,
        task,
        partial(face_batches, known, plan.encoder, group),
        Checkpoints(store, "encoder"),
        Journal(store, "encoder"),
        group,
    )
    finished = copy.deepcopy(trained.network)
    assert isinstance(finished, CompactEncoder)
    scale_output(finished, spread)
    return assemble(plan, generator, finished, average)


def build(
    plan: DemoPlan, drawn: Drawn, folder: str, base: RestyleModel | None = None
) -> tuple[RestyleModel, dict[str, float]]:
    """Both stages, resuming from `folder`; the model with its figures, and seconds per stage.

    A stage's seconds are those of all its runs, as its journal has them.
    """
    check_plan(plan, base, folder, len(drawn.pairs))
    if join_group().leads:
        keep_plan(plan, base, folder, len(drawn.pairs))
    generator = fit_generator(
        plan.generator,
        drawn.as_pairs,
        folder,
        channels=plan.channels,
        start=base.generator if base else None,
        held_out=plan.held_out,
    )
    model = train_encoder(plan, generator, drawn, folder, base)
    stages = {stage: stage_figures(folder, stage) for stage in ("generator", "encoder")}
    notes: dict[str, Any] = {"pairs": len(drawn.pairs) - plan.held_out, **stages}
    encoder = model.encoder
    assert isinstance(encoder, CompactEncoder)
    finished = assemble(plan, generator, encoder, model.latent_avg, notes)
    return finished, {stage: figures["seconds"] for stage, figures in stages.items()}


def stage_figures(folder: str, stage: str) -> dict[str, Any]:
    """The last line of a stage's journal, with the seconds that the whole stage took."""
    lines = read_reports(Store(folder), stage)
    figures = dict(lines[-1]) if lines else {}
    figures.pop("total_seconds", None)
    return figures | {"seconds": total_seconds(lines)}
