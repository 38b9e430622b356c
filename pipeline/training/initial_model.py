"""The model that a training starts from: one to go on with, or a generator and a fresh encoder."""

from __future__ import annotations

import dataclasses
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
from pipeline.models.checkpoint import generator_channels
from pipeline.models.encoders import WIDTHS
from pipeline.models.files import CHECKPOINT_SUFFIXES
from pipeline.models.model import build_encoder, digest_of
from pipeline.models.model_file import read_model_file
from pipeline.models.state_files import read_state
from pipeline.models.stylegan2 import n_styles_of
from pipeline.training.config import TrainConfig

RESTYLE_CHANNELS, ONE_PASS_CHANNELS = 6, 3
MAPPED_CODES = 10_000  # whose mean is the average latent where a generator's file has none
RESNET34_LAYERS = (3, 4, 6, 3)


def starting_model(config: TrainConfig) -> RestyleModel:
    """The model as the training begins; its card says what it came from, and shows.

    Raises `ModelError`, and `ConfigError` for a domain that the encoder's input does not suit.
    """
    if config.generator:
        model = _from_generator(config)
    else:
        # A bundle's encoder has its input size whatever the domain; a checkpoint's follows it.
        is_file = PurePosixPath(str(config.model)).suffix in CHECKPOINT_SUFFIXES
        model = load_model(str(config.model), domain=config.domain if is_file else None)
        if config.domain:
            model.card = dataclasses.replace(model.card, domain=config.domain)
        if config.encoder_type:
            model = _with_fresh_encoder(model, config)
        elif model.generator_alone:
            raise ConfigError(
                f"the model '{model.name}' is a generator alone: choose the encoder to train "
                "with --encoder-type"
            )
    if config.backbone:
        load_backbone(model.encoder, config.backbone)
    _check_shape(model)
    return model


def start_digest(config: TrainConfig, model: RestyleModel) -> str:
    """What tells that the weights given are still those that a training was begun with.

    A fresh encoder and a mean that is drawn follow from the seed, on one machine to the last bit.
    """
    if config.encoder_type:
        return digest_of(model.generator.state_dict())
    return model.fingerprint


def _check_shape(model: RestyleModel) -> None:
    """Raise `ConfigError` for a model whose images have other proportions than its domain's."""
    (height, width), (tall, wide) = model.input_size, preset_of(model.domain).input_size
    if height * wide != width * tall:
        raise ConfigError(
            f"images of {model.domain} are cut to {tall}x{wide}, but the encoder of "
            f"'{model.name}' takes {height}x{width}: choose another --domain, or an --encoder-type "
            "for a fresh encoder"
        )


def _input_channels(config: TrainConfig) -> int:
    return ONE_PASS_CHANNELS if config.one_pass else RESTYLE_CHANNELS


def _with_fresh_encoder(model: RestyleModel, config: TrainConfig) -> RestyleModel:
    encoder_type = str(config.encoder_type)
    arguments: dict[str, Any] = {
        "n_styles": model.n_styles,
        "input_channels": _input_channels(config),
    }
    input_size = preset_of(model.domain).input_size
    if encoder_type == "CompactEncoder":
        arguments["input_size"], input_size = model.generator_size, (model.generator_size,) * 2
    else:  # said as a reader of the weights says it: a fingerprint is of the arguments too
        arguments["widths"] = list(WIDTHS)
    architecture = Architecture(
        encoder_type,
        arguments,
        model.architecture.channels,
        model.architecture.mapping_layers,
        input_size,
    )
    fresh = RestyleModel(architecture, model.card)
    fresh.generator.load_state_dict(model.generator.state_dict())
    fresh.latent_avg.copy_(model.latent_avg)
    return fresh


def _from_generator(config: TrainConfig) -> RestyleModel:
    """A StyleGAN2 in the published `.pt` layout (`g_ema`, `latent_avg`) with a fresh encoder."""
    source = str(config.generator)
    content = read_model_file(source)
    state = content.get("g_ema")
    if not isinstance(state, Mapping):
        raise ModelError(f"{source}: no 'g_ema', so not a StyleGAN2 generator's file")
    decoder = {f"decoder.{key}": value for key, value in state.items()}
    domain = config.domain or "unknown"
    encoder_type = str(config.encoder_type)
    try:
        channels = generator_channels({key: list(value.shape) for key, value in decoder.items()})
    except (KeyError, AttributeError) as error:
        raise ModelError(f"{source}: 'g_ema' is not a StyleGAN2 generator ({error})") from error
    if encoder_type not in ENCODER_TYPES or encoder_type == "CompactEncoder":
        known = ", ".join(sorted(set(ENCODER_TYPES) - {"CompactEncoder"}))
        raise ModelError(f"no encoder is called '{encoder_type}' (known: {known})")
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
    """Codes [count, 512] of random z, by the generator's own mapping network.

    Raises `ModelError` where it has none.
    """
    if not model.architecture.mapping_layers:
        raise ModelError(
            f"the generator of '{model.name}' has no mapping network to draw real codes from: "
            "pass --codes with pairs-*.tar, or --realness 0"
        )
    z = torch.randn(count, 512).to(model.latent_avg.device)
    return model.generator.map_z(z)


def load_backbone(encoder: torch.nn.Module, uri: str) -> None:
    """Start an encoder's body from a recognition network's weights: IR-SE50 or torch's ResNet34.

    The input layer's further channels, those of the present reconstruction, start at zero, where
    the published code draws them from a normal distribution. Heads stay as they are. Raises
    `ModelError` where the file does not fit the body.
    """
    given, _ = read_state(uri, "backbone weights")
    given = {_body_name(key): value for key, value in given.items()}
    body = {
        key: value
        for key, value in encoder.state_dict().items()
        if not key.startswith(("styles.", "latlayer"))
    }
    for key, current in body.items():
        value = given.get(key)
        if value is None and key.endswith(("num_batches_tracked", "relu.weight")):
            continue  # absent from files of torch's own, whose ReLU has no weights
        if value is None or not _fits(value, current):
            raise ModelError(f"backbone weights {uri!r}: '{key}' is missing or of another shape")
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
    """torch's `layer2.0.conv1` as the encoders' `body.3.conv1`; other names as they are."""
    layer, _, rest = key.partition(".")
    if not layer.startswith("layer") or not layer[5:].isdigit():
        return key
    index, _, name = rest.partition(".")
    before = sum(RESNET34_LAYERS[: int(layer[5:]) - 1])
    return f"body.{before + int(index)}.{name}"
