"""Train an encoder in one process: crops and a config in, checkpoints and models out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.errors import InputError
from pipeline.models import RestyleModel, save_bundle
from pipeline.models.official import original_refuses, save_official
from pipeline.models.pixels import from_levels
from pipeline.storage import Store
from pipeline.storage.readers.pairs import pair_tars
from pipeline.training.augment import flip_half
from pipeline.training.config import TrainConfig
from pipeline.training.data import CropPairs, Crops, windowed
from pipeline.training.degradations import Degrader
from pipeline.training.distributed import Group
from pipeline.training.e4e import Adversary
from pipeline.training.encoder_task import EncoderPlan, EncoderTask, Faces, augment_faces
from pipeline.training.initial_model import mapped_codes, start_digest, starting_model
from pipeline.training.latent_pairs import load_codes
from pipeline.training.official_resume import continuation_of
from pipeline.training.optimisers import make_optimiser
from pipeline.training.paper_defaults import (
    ADAM_BETA2,
    adversary_plan,
    earlier_plan,
    encoder_plan,
    feature_networks,
)
from pipeline.training.resume_check import ENCODER, Origin, check_settings, save_settings
from pipeline.training.train_log import summary_writer
from pipeline.training.trainer import LoopPlan, Trained, train

BUNDLE, OFFICIAL = "bundle", "official.pt"


def loop_plan(config: TrainConfig) -> LoopPlan:
    """Return the training loop's settings from the config."""
    return LoopPlan(
        images=config.images,
        batch=config.batch,
        max_lr=config.rate,
        optimiser=config.optimiser,
        beta2=ADAM_BETA2,
        warmup_steps=config.warm_up,
        decay=config.decay,
        clip=config.clip,
        ema_window=config.horizon,
        report_every=config.report_every,
        save_every=config.save_every,
        save_minutes=config.save_minutes,
        seed=config.seed,
    )


def augmentation(config: TrainConfig) -> Callable[[Faces], Faces]:
    """Return the augmentation of a batch; the target gets the same change as the input."""
    if config.augment == "flip":
        return partial(augment_faces, change=flip_half, change_target=flip_half)
    return augment_faces


def split_counts(crops: Crops | CropPairs, held_out: int, batch: int = 1) -> list[int]:
    """Return for each file the number of its crops to train on: all but the last `held_out`.

    Raises `InputError` when they do not fill a batch.
    """
    counts, remaining = list(crops.counts), held_out
    while counts and remaining >= counts[-1]:
        remaining -= counts.pop()
    if counts:
        counts[-1] -= remaining
    if sum(counts) < batch:
        raise InputError(
            f"{len(crops)} faces, {held_out} of them held out for validation: the other "
            f"{sum(counts)} do not fill a batch of {batch}; lower --held-out or --batch, or give "
            "more images"
        )
    return counts


def faces_at(crops: Crops | CropPairs, index: Tensor, degrader: Degrader | None = None) -> Faces:
    """Return inputs and targets of the crops at `index` [b]."""
    inputs, targets = crops.pairs(index)
    if inputs is targets and degrader is None:
        images = from_levels(inputs)
        return Faces(images, images)
    if degrader:
        inputs = torch.stack(
            [_degraded(image, degrader, int(n)) for image, n in zip(inputs, index, strict=True)]
        )
    return Faces(from_levels(inputs), from_levels(targets))


def _degraded(image: Tensor, degrader: Degrader, number: int) -> Tensor:
    """Return one degraded crop, uint8 [3, h, w]."""
    damaged = degrader(image.permute(1, 2, 0).contiguous().numpy(), number)
    return torch.from_numpy(np.array(damaged)).permute(2, 0, 1)


def _real_codes(config: TrainConfig, model: RestyleModel) -> Callable[[int], Tensor]:
    """Return the source of real codes: the mapping network, or stored pairs."""
    if not config.codes:
        mapped_codes(model, 1)  # raises at once where there is no mapping network
        return lambda count: mapped_codes(model, count)
    codes = load_codes(pair_tars(config.codes)).to(model.latent_avg.device)
    return lambda count: codes[torch.randint(len(codes), (count,))]


def check_request(config: TrainConfig, model: RestyleModel) -> dict[str, Any] | None:
    """Check before any crop is made that the workers can run this training.

    Returns, for the log, what the training continues; None for a new one. Raises `ConfigError` for
    steps that the encoder cannot make and for missing packages, `ModelError` for weight files that
    are missing or do not fit, and when there is no source of real codes.
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
    has_adversary = adversary_plan(config, model) is not None
    return previous.facts(plan.stages, model.n_styles, adversary=has_adversary)


def make_task(config: TrainConfig, model: RestyleModel, held_out: Faces) -> EncoderTask:
    """Return the task that trains `model`'s encoder, validated on `held_out`."""
    previous, device = continuation_of(config, model), str(model.latent_avg.device)
    plan = encoder_plan(config, model, previous)
    adversary = adversary_plan(config, model)
    return EncoderTask(
        model,
        plan,
        held_out,
        augment=augmentation(config),
        networks=feature_networks(config, plan.images, device),
        adversary=Adversary(adversary, _real_codes(config, model), device) if adversary else None,
        previous=previous,
        earlier_plan=earlier_plan(config, model),
    )


def train_restyle(
    config: TrainConfig, crops: Crops | CropPairs, group: Group, device: str = "cpu"
) -> dict[str, Any]:
    """Train, resuming from the last checkpoint in the output; return a summary.

    The main process writes `bundle/` and, where the original code can load it, `official.pt`, both
    with the best weights by validation. Raises `FingerprintError` where the output holds a training
    of other settings, crops or initial weights.
    """
    torch.manual_seed(config.seed)  # a new encoder has the same weights in every process
    store, plan = Store(config.output), loop_plan(config)
    model = starting_model(config)
    origin = Origin(crops.name, start_digest(config, model))
    check_settings(config, origin)
    if group.is_main_process:
        save_settings(config, origin)
    model = model.to(device)
    counts = split_counts(crops, config.held_out, config.batch)
    degrader = Degrader(config.degrade, config.seed) if config.degrade else None
    held_out = faces_at(crops, torch.arange(sum(counts), len(crops)), degrader)
    task = make_task(config, model, held_out)
    trained = train(
        plan,
        task,
        sum(counts),
        partial(faces_at, crops, degrader=degrader),
        store,
        ENCODER,
        group,
        shuffled=windowed(counts, crops.window),
        tensorboard=config.tensorboard,
    )
    if not group.is_main_process:
        return {}
    return write_models(config, task.plan, model, trained, len(crops))


def write_models(
    config: TrainConfig, plan: EncoderPlan, model: RestyleModel, trained: Trained, crops: int
) -> dict[str, Any]:
    """Load the best encoder weights into `model` and write it as a bundle.

    Also writes the official file where the original code can load the model; otherwise the summary
    has the reason under `no_official`.
    """
    model.encoder.load_state_dict(trained.best.state_dict())
    model.requires_grad_(False).eval()
    notes = {"trained_images": trained.best_images, "crops": crops, "from": model.card.name}
    if plan.images_before:  # of the training that this one continued
        notes["images_before"] = plan.images_before
    model.card = dataclasses.replace(model.card, notes=notes)
    store = Store(config.output)
    save_bundle(model, store.uri(BUNDLE))
    written = {"bundle": store.uri(BUNDLE), "official": None, "best_images": trained.best_images}
    if refused := original_refuses(model):
        return {**written, "no_official": refused}
    save_official(model, store.uri(OFFICIAL), _official_options(config, plan))
    return {**written, "official": store.uri(OFFICIAL)}


def _official_options(config: TrainConfig, plan: EncoderPlan) -> dict[str, Any]:
    weights = plan.images
    return {
        "batch_size": config.batch,
        "learning_rate": config.rate,
        "optim_name": config.optimiser,
        "l2_lambda": weights.l2,
        "lpips_lambda": weights.lpips,
        "id_lambda": weights.identity,
        "moco_lambda": weights.moco,
        "w_norm_lambda": plan.w_norm,
        "n_iters_per_batch": plan.steps,
        "max_steps": config.images // config.batch,
    }
