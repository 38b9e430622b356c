"""One process of an encoder's training: crops and a config in, checkpoints and models out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.errors import InputError
from pipeline.models import ModelCard, RestyleModel, save_bundle
from pipeline.models.official import original_refuses, save_official
from pipeline.models.pixels import from_levels
from pipeline.storage import Store
from pipeline.training.augment import augment, augment_alike, flip_alike, flip_half
from pipeline.training.checkpoints import Checkpoints
from pipeline.training.config import TrainConfig
from pipeline.training.data import Crops, Pairs, random_batches, windowed
from pipeline.training.degradations import Degrader
from pipeline.training.distributed import Group
from pipeline.training.e4e import Adversary
from pipeline.training.encoder_task import EncoderTask, Faces
from pipeline.training.initial_model import mapped_codes, start_digest, starting_model
from pipeline.training.official_resume import continuation_of
from pipeline.training.optimisers import make_optimiser
from pipeline.training.paper_defaults import (
    ADAM_BETA2,
    adversary_plan,
    earlier_plan,
    encoder_plan,
    feature_networks,
)
from pipeline.training.real_codes import read_codes
from pipeline.training.resume_check import ENCODER, Origin, check_settings, keep_settings
from pipeline.training.train_log import Board, Journal, summary_writer
from pipeline.training.trainer import LoopPlan, Trained, train

BUNDLE, OFFICIAL = "bundle", "official.pt"


def loop_plan(config: TrainConfig) -> LoopPlan:
    """The loop's part of the config."""
    return LoopPlan(
        images=config.images,
        batch=config.batch,
        peak_rate=config.rate,
        optimiser=config.optimiser,
        beta2=ADAM_BETA2,
        warm_up=config.warm_up,
        decay=config.decay,
        clip=config.clip,
        horizon=config.horizon,
        report_every=config.report_every,
        save_every=config.save_every,
        save_minutes=config.save_minutes,
        seed=config.seed,
    )


def is_paired(config: TrainConfig) -> bool:
    """Whether the encoder is shown something else than it is to give."""
    return bool(config.target or config.degrade)


def augmentation(config: TrainConfig) -> Callable[[Faces], Faces]:
    """What is done to a batch: the target is what the encoder sees, or is changed like it."""
    if is_paired(config):
        alike = flip_alike if config.augment == "flip" else augment_alike
        return lambda faces: Faces(*alike(*faces))
    change = flip_half if config.augment == "flip" else augment

    def changed(faces: Faces) -> Faces:
        images = change(faces.seen)
        return Faces(images, images)

    return changed


def split_counts(crops: Crops | Pairs, held_out: int, batch: int = 1) -> list[int]:
    """Crops of each file that are trained on: all but the last `held_out`.

    Raises `InputError` where they do not fill a batch.
    """
    counts, over = list(crops.counts), held_out
    while counts and over >= counts[-1]:
        over -= counts.pop()
    if counts:
        counts[-1] -= over
    if sum(counts) < batch:
        raise InputError(
            f"{len(crops)} faces, of which {held_out} are held out for validation: the other "
            f"{sum(counts)} do not fill a batch of {batch}; lower --held-out or --batch, or give "
            "more images"
        )
    return counts


def faces_at(crops: Crops | Pairs, index: Tensor, degrader: Degrader | None = None) -> Faces:
    """What the encoder is shown of the crops at `index` [b], and what it is to give."""
    seen = crops.images(index)
    if isinstance(crops, Crops) and degrader is None:
        images = from_levels(seen)
        return Faces(images, images)
    wanted = crops.wanted(index)
    if degrader:
        seen = torch.stack(
            [_degraded(image, degrader, int(n)) for image, n in zip(seen, index, strict=True)]
        )
    return Faces(from_levels(seen), from_levels(wanted))


def _degraded(image: Tensor, degrader: Degrader, number: int) -> Tensor:
    """One crop, uint8 [3, h, w], damaged."""
    damaged = degrader(image.permute(1, 2, 0).contiguous().numpy(), number)
    return torch.from_numpy(np.array(damaged)).permute(2, 0, 1)


def crop_batches(
    crops: Crops | Pairs,
    counts: list[int],
    plan: LoopPlan,
    group: Group,
    degrader: Degrader | None = None,
) -> Callable[[int], Iterator[Faces]]:
    """This process's share of every batch from a given one on."""

    def batches(first: int) -> Iterator[Faces]:
        order = windowed(counts, crops.window)
        for index in random_batches(sum(counts), plan.batch, plan.seed, first, order):
            yield faces_at(crops, group.share(index), degrader)

    return batches


def _real_codes(config: TrainConfig, model: RestyleModel) -> Callable[[int], Tensor]:
    """What draws real codes: the mapping network, or pairs."""
    if not config.codes:
        mapped_codes(model, 1)  # tells at once where there is no mapping network
        return lambda count: mapped_codes(model, count)
    codes = read_codes(config.codes).to(model.latent_avg.device)
    return lambda count: codes[torch.randint(len(codes), (count,))]


def check_request(config: TrainConfig, model: RestyleModel) -> dict[str, Any] | None:
    """Refuse what the workers could not do, before any crop is cut for them.

    Returns what the training goes on with, for the log; None for a new one.

    Raises `ConfigError` for steps that the encoder cannot make and packages that are not installed,
    `ModelError` for weight files that are missing or do not fit, and where there is nothing to draw
    real codes from.
    """
    previous = continuation_of(config, model)
    plan = encoder_plan(config, model, previous)
    make_optimiser(config.optimiser, [nn.Parameter(torch.zeros(1))], config.rate)
    if config.tensorboard:
        summary_writer()
    if adversary_plan(config, model) and not config.codes:
        mapped_codes(model, 1)
    feature_networks(config, plan.images, "cpu")
    if previous is None:
        return None
    rival = adversary_plan(config, model) is not None
    return previous.facts(plan.stages, model.n_styles, adversary=rival)


def make_task(config: TrainConfig, model: RestyleModel, held_out: Faces) -> EncoderTask:
    """The training of `model`'s encoder, validated on `held_out`."""
    previous, device = continuation_of(config, model), str(model.latent_avg.device)
    plan = encoder_plan(config, model, previous)
    rival = adversary_plan(config, model)
    return EncoderTask(
        model,
        plan,
        held_out,
        augment=augmentation(config),
        networks=feature_networks(config, plan.images, device),
        adversary=Adversary(rival, _real_codes(config, model), device) if rival else None,
        previous=previous,
        earlier_plan=earlier_plan(config, model),
    )


def train_restyle(
    config: TrainConfig, crops: Crops | Pairs, group: Group, device: str = "cpu"
) -> dict[str, Any]:
    """Train, going on from the last checkpoint in the output; returns what the run came to.

    The leading process writes `bundle/` and, where the original code can load it,
    `official.pt`, with the best weights by validation. Raises `FingerprintError` where the output
    holds a training of other settings, crops or first weights.
    """
    torch.manual_seed(config.seed)  # a fresh encoder is the same in every process
    store, plan = Store(config.output), loop_plan(config)
    model = starting_model(config)
    origin = Origin(crops.name, start_digest(config, model))
    check_settings(config, origin)
    if group.leads:
        keep_settings(config, origin)
    model = model.to(device)
    counts = split_counts(crops, config.held_out, config.batch)
    degrader = Degrader(config.degrade, config.seed) if config.degrade else None
    held_out = faces_at(crops, torch.arange(sum(counts), len(crops)), degrader)
    task = make_task(config, model, held_out)
    open_board = partial(Board, store) if config.tensorboard and group.leads else None
    trained = train(
        plan,
        task,
        crop_batches(crops, counts, plan, group, degrader),
        Checkpoints(store, ENCODER),
        Journal(store, ENCODER, open_board),
        group,
    )
    before = task.plan.images_before
    return write_models(config, model, trained, len(crops), before) if group.leads else {}


def write_models(
    config: TrainConfig, model: RestyleModel, trained: Trained, crops: int, images_before: int = 0
) -> dict[str, Any]:
    """Put the best encoder into `model` and write it as a bundle.

    Also in the official form where the original code can load it; else `no_official` says why not.
    """
    model.encoder.load_state_dict(trained.best.state_dict())
    model.requires_grad_(False).eval()
    notes = {"trained_images": trained.best_images, "crops": crops, "from": model.card.name}
    if images_before:  # of the training that this one went on with
        notes["images_before"] = images_before
    model.card = ModelCard(
        model.card.name,
        model.domain,
        model.card.source,
        model.card.licence,
        notes,
    )
    store = Store(config.output)
    save_bundle(model, store.uri(BUNDLE))
    written = {"bundle": store.uri(BUNDLE), "official": None, "best_images": trained.best_images}
    if refused := original_refuses(model):
        return {**written, "no_official": refused}
    save_official(model, store.uri(OFFICIAL), _official_options(config, model))
    return {**written, "official": store.uri(OFFICIAL)}


def _official_options(config: TrainConfig, model: RestyleModel) -> dict[str, Any]:
    plan = encoder_plan(config, model)
    weights = dataclasses.asdict(plan.images)
    return {
        "batch_size": config.batch,
        "learning_rate": config.rate,
        "optim_name": config.optimiser,
        "l2_lambda": weights["l2"],
        "lpips_lambda": weights["lpips"],
        "id_lambda": weights["identity"],
        "moco_lambda": weights["moco"],
        "w_norm_lambda": plan.w_norm,
        "n_iters_per_batch": plan.steps,
        "max_steps": config.images // config.batch,
    }
