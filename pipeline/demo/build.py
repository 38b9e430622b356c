"""Build the two embedded demo models, faces and cartoons, from (w, image) pairs."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.demo.cartoon import cartoon
from pipeline.demo.generator_task import LatentScale, fit_generator, repeat_rows
from pipeline.demo.growth import with_levels, with_rows
from pipeline.demo.plans import DemoPlan, check_plan, save_plan
from pipeline.models import Architecture, ModelCard, RestyleModel
from pipeline.models.encoders import CompactEncoder
from pipeline.models.model import digest_of
from pipeline.models.pixels import from_levels, to_levels
from pipeline.models.stylegan2 import Generator
from pipeline.storage import Store
from pipeline.training.checkpoints import load_state, save_state
from pipeline.training.distributed import join_group
from pipeline.training.encoder_task import EncoderTask, Faces, augment_faces, model_start
from pipeline.training.latent_pairs import LatentPairs
from pipeline.training.losses import load_face_features
from pipeline.training.train_log import read_reports, total_seconds
from pipeline.training.trainer import train

LICENCE = (
    "research use only: the pairs come from a network (the wheel says Apache-2.0) that descends "
    "from NVIDIA's StyleGAN2-FFHQ, which is licensed for non-commercial use"
)
WIDTH = 32  # of the encoder
CARTOON_BATCH = 64


def faces_at(pairs: LatentPairs, index: Tensor, size: int) -> Faces:
    """Return the encoder's inputs, of `size` pixels, and targets at `index`."""
    images = from_levels(pairs.images[index])
    inputs = images if images.shape[-1] == size else F.adaptive_avg_pool2d(images, size)
    return Faces(inputs, images if pairs.targets is None else from_levels(pairs.targets[index]))


def reduced_pairs(pairs: LatentPairs, size: int) -> LatentPairs:
    """Return `pairs` with images of `size` pixels to render, by block means."""
    if pairs.rendered.shape[-1] == size:
        return pairs
    images = [_reduced(from_levels(batch), size) for batch in pairs.rendered.split(CARTOON_BATCH)]
    return LatentPairs(pairs.w, torch.cat(images))


def draw_cartoons(pairs: LatentPairs, size: int, folder: str) -> LatentPairs:
    """Return `pairs` reduced to `size`, with cartoons computed at full size as targets.

    The cartoons are stored in `folder` and computed again only for other images: 2.5 minutes for
    10,000 pairs of 128 px on one core.
    """
    store, drawn_from = Store(folder), digest_of({"images": pairs.images}, f"at {size} px")
    state = load_state(store, "looks.pt")
    if state is None or state.get("drawn_from") != drawn_from:
        cartoons = [
            _reduced(cartoon(from_levels(batch)), size)
            for batch in pairs.images.split(CARTOON_BATCH)
        ]
        state = {"looks": torch.cat(cartoons), "drawn_from": drawn_from}
        save_state(store, "looks.pt", state)
    return replace(reduced_pairs(pairs, size), targets=state["looks"])


def _reduced(images: Tensor, size: int) -> Tensor:
    """Return images in [-1, 1] of any size as uint8 [n, 3, size, size], by block means."""
    return to_levels(F.adaptive_avg_pool2d(images, size))


def assemble(
    plan: DemoPlan,
    generator: Generator,
    encoder: CompactEncoder,
    latent_avg: Tensor,  # [n_styles, 512]
) -> RestyleModel:
    """Return both networks as one model."""
    size = encoder.input_size
    architecture = Architecture(
        encoder_type="CompactEncoder",
        encoder_arguments={
            "n_styles": generator.n_styles,
            "input_size": size,
            "input_channels": 6,
            "width": encoder.stem.out_channels,
        },
        channels=plan.growth.channels if plan.growth else plan.channels,
        input_size=(size, size),
    )
    model = RestyleModel(architecture, ModelCard(plan.name, plan.domain, plan.source, LICENCE))
    model.generator.load_state_dict(generator.state_dict())
    model.encoder.load_state_dict(encoder.state_dict())
    model.latent_avg.copy_(latent_avg)
    return model


@torch.no_grad()
def scale_output(encoder: CompactEncoder, spread: float) -> None:
    """Multiply the heads by `spread` in place, so that the output is a residual in W."""
    encoder.heads.matrix.mul_(spread)
    encoder.heads.bias.mul_(spread)


def train_encoder(
    plan: DemoPlan,
    generator: Generator,
    pairs: LatentPairs,
    folder: str,
    base: RestyleModel | None = None,
) -> RestyleModel:
    """Train an encoder for `generator`, resuming from `folder`; return both as a model.

    With `base` the encoder's initial weights are that model's, and every face starts from that
    model's first step. Of a larger `base` the first style rows are used.
    """
    torch.manual_seed(plan.encoder.seed)
    training, held_out = pairs.split(plan.held_out)
    spread = LatentScale.of(training.w).spread
    rows, size = generator.n_styles, plan.first_size
    encoder = CompactEncoder(rows, size, width=WIDTH)
    average = repeat_rows(training.w.mean(dim=0)[None], rows)[0]
    if base:
        assert isinstance(base.encoder, CompactEncoder)
        encoder = with_rows(base.encoder, rows)
        scale_output(encoder, 1 / spread)
        average = base.latent_avg[:rows]
    model = assemble(plan, generator, encoder, average)
    identity = {"identity": load_face_features("dlib")} if plan.rounds.images.identity else {}
    task = EncoderTask(
        model,
        replace(plan.rounds, spread=spread),
        faces_at(held_out, torch.arange(plan.held_out), size),
        start=model_start(base, rows) if base else None,
        augment=augment_faces,
        networks=identity,
    )
    trained = train(
        plan.encoder,
        task,
        len(training),
        partial(faces_at, training, size=size),
        Store(folder),
        "encoder",
        join_group(),
    )
    finished = trained.network
    assert isinstance(finished, CompactEncoder)
    scale_output(finished, spread)
    return assemble(plan, generator, finished, average)


def build(
    plan: DemoPlan, pairs: LatentPairs, folder: str, base: RestyleModel | None = None
) -> tuple[RestyleModel, dict[str, float]]:
    """Run all stages, resuming from `folder`; return the model and the seconds of each stage.

    The model's card has the last metrics of each. Seconds cover all runs, as in the training log.
    """
    check_plan(plan, base, folder, len(pairs))
    if join_group().is_main_process:
        save_plan(plan, base, folder, len(pairs))
    generator = make_generator(plan, pairs, folder, base)
    model = train_encoder(plan, generator, pairs, folder, base)
    stages = {stage: final_report(folder, stage) for stage in plan.stages}
    notes = {"pairs": len(pairs) - plan.held_out, **stages}
    model.card = replace(model.card, notes=notes)
    return model, {stage: report["seconds"] for stage, report in stages.items()}


def make_generator(
    plan: DemoPlan, pairs: LatentPairs, folder: str, base: RestyleModel | None = None
) -> Generator:
    """Fit the generator and, if the plan says so, grow it; resumes from `folder`."""
    generator = fit_generator(
        plan.generator,
        reduced_pairs(pairs, plan.first_size),
        folder,
        channels=plan.channels,
        start=with_levels(base.generator, plan.channels) if base else None,
        held_out=plan.held_out,
    )
    if plan.growth is None:
        return generator
    return fit_generator(
        plan.growth.loop,
        pairs,
        folder,
        start=with_levels(generator, plan.growth.channels),
        held_out=plan.held_out,
        adversarial=plan.growth.adversarial,
        stage="growth",
    )


def final_report(folder: str, stage: str) -> dict[str, Any]:
    """Return the last line of a stage's training log, with the seconds of the whole stage."""
    lines = read_reports(Store(folder), stage)
    report = dict(lines[-1]) if lines else {}
    report.pop("total_seconds", None)
    return report | {"seconds": total_seconds(lines)}
