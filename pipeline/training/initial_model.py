"""Load a training's initial model: one to continue, or a generator with a new encoder."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import ConfigError, ModelError
from pipeline.models import (
    ENCODER_TYPES,
    Architecture,
    ModelCard,
    RestyleModel,
    load_checkpoint,
    load_model,
    preset_of,
)
from pipeline.models.checkpoint import RESTYLE_CHANNELS, generator_channels
from pipeline.models.encoders import WIDTHS, ResNet34
from pipeline.models.files import CHECKPOINT_SUFFIXES
from pipeline.models.model import build_encoder, digest_of
from pipeline.models.state_files import read_model_file, read_state
from pipeline.models.stylegan2 import n_styles_of
from pipeline.training.config import TrainConfig

SINGLE_PASS_CHANNELS = 3
MAPPED_CODES = 10_000  # mapped codes for the average latent when the file has no latent_avg


def starting_model(config: TrainConfig) -> RestyleModel:
    """Return the initial model; its card has its source and domain.

    Raises `ModelError`, and `ConfigError` for a domain that does not fit the encoder's input size.
    """
    if config.generator:
        model = _from_generator(config)
    else:
        # A bundle has its encoder's input size; for a checkpoint it follows from the domain.
        is_file = PurePosixPath(str(config.model)).suffix in CHECKPOINT_SUFFIXES
        model = load_model(str(config.model), domain=config.domain if is_file else None)
        if config.domain:
            model.card = dataclasses.replace(model.card, domain=config.domain)
        if config.encoder_type:
            model = _with_new_encoder(model, config)
        elif model.generator_alone:
            raise ConfigError(
                f"the model '{model.name}' has no encoder, only a generator: choose the encoder to "
                "train with --encoder-type"
            )
    if config.backbone:
        load_backbone(model.encoder, config.backbone)
    _check_shape(model)
    return model


def start_digest(config: TrainConfig, model: RestyleModel) -> str:
    """Return a digest of the given weights, to detect that they changed before a resume.

    A new encoder and a sampled average latent are not part of it: they follow from the seed.
    """
    if config.encoder_type:
        return digest_of(model.generator.state_dict())
    return model.fingerprint


def _check_shape(model: RestyleModel) -> None:
    """Raise `ConfigError` if encoder input and domain differ in aspect ratio."""
    (height, width), (tall, wide) = model.input_size, preset_of(model.domain).input_size
    if height * wide != width * tall:
        raise ConfigError(
            f"images of {model.domain} are cropped to {tall}x{wide}, but the encoder of "
            f"'{model.name}' takes {height}x{width}: choose another --domain, or an --encoder-type "
            "for a new encoder"
        )


def _input_channels(config: TrainConfig) -> int:
    return SINGLE_PASS_CHANNELS if config.one_pass else RESTYLE_CHANNELS


def _with_new_encoder(model: RestyleModel, config: TrainConfig) -> RestyleModel:
    encoder_type = str(config.encoder_type)
    arguments: dict[str, Any] = {
        "n_styles": model.n_styles,
        "input_channels": _input_channels(config),
    }
    input_size = preset_of(model.domain).input_size
    if encoder_type == "CompactEncoder":
        arguments["input_size"], input_size = model.generator_size, (model.generator_size,) * 2
    else:  # as in a loaded checkpoint: the fingerprint covers the arguments
        arguments["widths"] = list(WIDTHS)
    architecture = Architecture(
        encoder_type,
        arguments,
        model.architecture.channels,
        model.architecture.mapping_layers,
        input_size,
    )
    new_model = RestyleModel(architecture, model.card)
    new_model.generator.load_state_dict(model.generator.state_dict())
    new_model.latent_avg.copy_(model.latent_avg)
    return new_model


def _from_generator(config: TrainConfig) -> RestyleModel:
    """Read a StyleGAN2 `.pt` file (`g_ema`, `latent_avg`) and add a new encoder."""
    source = str(config.generator)
    content = read_model_file(source)
    state = content.get("g_ema")
    if not isinstance(state, Mapping):
        raise ModelError(f"{source}: not a StyleGAN2 generator file, it has no 'g_ema'")
    decoder = {f"decoder.{key}": value for key, value in state.items()}
    domain = config.domain or "unknown"
    encoder_type = str(config.encoder_type)
    try:
        channels = generator_channels({key: list(value.shape) for key, value in decoder.items()})
    except (KeyError, AttributeError) as error:
        raise ModelError(f"{source}: 'g_ema' is not a StyleGAN2 generator ({error})") from error
    if encoder_type not in ENCODER_TYPES or encoder_type == "CompactEncoder":
        valid = ", ".join(sorted(set(ENCODER_TYPES) - {"CompactEncoder"}))
        raise ModelError(f"unknown encoder type '{encoder_type}' for --generator; valid: {valid}")
    rows = n_styles_of(max(channels))
    arguments = {"n_styles": rows, "input_channels": _input_channels(config)}
    encoder = build_encoder(Architecture(encoder_type, arguments, channels))
    state_dict = decoder | {f"encoder.{key}": value for key, value in encoder.state_dict().items()}
    average = content.get("latent_avg")
    checkpoint: dict[str, Any] = {
        "state_dict": state_dict,
        "latent_avg": average if isinstance(average, Tensor) else torch.zeros(512),
        "opts": {"encoder_type": encoder_type, "dataset_type": domain},
    }
    card = ModelCard(PurePosixPath(source).stem, domain, source)
    model = load_checkpoint(checkpoint, card=card, source=source)
    if not isinstance(average, Tensor):
        model.latent_avg.copy_(mapped_codes(model, MAPPED_CODES).mean(dim=0))
    return model


@torch.no_grad()
def mapped_codes(model: RestyleModel, count: int) -> Tensor:
    """Map random z to codes [count, 512] with the generator's mapping network.

    Raises `ModelError` when it has none.
    """
    if not model.architecture.mapping_layers:
        raise ModelError(
            f"the generator of '{model.name}' has no mapping network to draw real codes from: "
            "pass --codes with pairs-*.tar, or --realness 0"
        )
    z = torch.randn(count, 512).to(model.latent_avg.device)
    return model.generator.map_z(z)


def load_backbone(encoder: torch.nn.Module, uri: str) -> None:
    """Load a recognition network's weights, IR-SE50 or torch's ResNet34, into an encoder's body.

    The input layer's channels for the reconstruction start at zero; the published code draws them
    from a normal distribution. Heads do not change. Raises `ModelError` when the file does not fit
    the body.
    """
    state, _ = read_state(uri, "backbone weights")
    state = {_body_name(key): value for key, value in state.items()}
    body = {
        key: value
        for key, value in encoder.state_dict().items()
        if not key.startswith(("styles.", "latlayer"))
    }
    for key, current in body.items():
        value = state.get(key)
        if value is None and key.endswith(("num_batches_tracked", "relu.weight")):
            continue  # not in torch's own files, whose ReLU has no weights
        if value is None or not _fits(value, current):
            raise ModelError(f"backbone weights {uri!r}: '{key}' is missing or has another shape")
        if value.shape != current.shape:
            current.zero_()
            current[:, : value.shape[1]] = value
        else:
            current.copy_(value)


def _fits(value: Tensor, current: Tensor) -> bool:
    same = value.shape == current.shape
    widened = value.dim() == 4 and value.shape[1] == 3 and value.shape[0] == current.shape[0]
    return same or (widened and value.shape[2:] == current.shape[2:])


def _body_name(key: str) -> str:
    """Return the encoders' name of a torch ResNet key: `layer2.0.conv1` to `body.3.conv1`."""
    match = re.fullmatch(r"layer(\d+)\.(\d+)\.(.+)", key)
    if match is None:
        return key
    before = sum(ResNet34.depths[: int(match[1]) - 1])
    return f"body.{before + int(match[2])}.{match[3]}"
