"""Reads official ReStyle, pSp and e4e checkpoints: `{"state_dict", "latent_avg", "opts"}`.

The weights decide: channel widths, output size, input channels and number of rows come from their
shapes. `opts` must agree, and tells what shapes cannot: the encoder's type and the domain.
"""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
from collections.abc import Mapping
from typing import IO, Any

import torch
from torch import Tensor

from pipeline.errors import ModelError
from pipeline.models.encoders import OFFICIAL_ENCODERS, official_arguments
from pipeline.models.restyle import Architecture, ModelCard, RestyleModel
from pipeline.models.weights import assemble

DOMAINS = {"ffhq": "faces", "celebs": "faces"}  # other data sets name their domain
CARS_INPUT = (192, 256)
INPUT = (256, 256)


def read_checkpoint(file: IO[bytes], source: str) -> dict[str, Any]:
    """The dictionary in an open official `.pt` file; runs no code from it.

    Raises `ModelError` if it is damaged, is no checkpoint, or holds other classes than tensors,
    plain containers and `argparse.Namespace`.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of a protocol that it then refuses
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        what = f"it holds the class {refused[1]}" if refused else "it is no file of tensors"
        raise ModelError(f"{source}: refused, {what}") from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise ModelError(f"{source}: damaged, or not a PyTorch checkpoint") from error
    if not isinstance(content, dict):
        raise ModelError(f"{source}: holds a {type(content).__name__}, expected a checkpoint dict")
    return content


def load_checkpoint(
    checkpoint: Mapping[str, Any],
    *,
    encoder_type: str | None = None,
    card: ModelCard | None = None,
    source: str = "checkpoint",
) -> RestyleModel:
    """A model from an official dictionary; it shares the memory of the dictionary's tensors.

    `encoder_type` is for checkpoints whose `opts` do not name one. Raises `ModelError`.
    """
    state, options, latent_avg = _parts(checkpoint, source)
    encoder_type = encoder_type or options.get("encoder_type")
    if encoder_type not in {encoder.__name__ for encoder in OFFICIAL_ENCODERS}:
        known = ", ".join(sorted(encoder.__name__ for encoder in OFFICIAL_ENCODERS))
        raise ModelError(f"{source}: opts.encoder_type is {encoder_type!r} (known: {known})")
    architecture = _architecture(encoder_type, state, options, source)
    _agree(architecture, options, source)
    weights = {re.sub(r"^decoder\.", "generator.", key): value for key, value in state.items()}
    return assemble(architecture, weights, latent_avg, card or _card(options, source), source)


def _parts(
    checkpoint: Mapping[str, Any], source: str
) -> tuple[dict[str, Tensor], dict[str, Any], Tensor]:
    state = checkpoint.get("state_dict")
    if not isinstance(state, Mapping) or not state:
        have = ", ".join(map(repr, list(checkpoint)[:4])) or "nothing"
        raise ModelError(f"{source}: no 'state_dict', so not a ReStyle checkpoint (found {have})")
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise ModelError(f"{source}: weight '{key}' is a {type(value).__name__}, not a tensor")
    options = checkpoint.get("opts", {})
    options = vars(options) if isinstance(options, argparse.Namespace) else options
    if not isinstance(options, Mapping):
        raise ModelError(f"{source}: 'opts' is a {type(options).__name__}, not a dict")
    latent_avg = checkpoint.get("latent_avg")
    if not isinstance(latent_avg, Tensor):
        raise ModelError(
            f"{source}: no 'latent_avg', and without the average latent ReStyle has no start; "
            "add it to the dictionary, for example the mean of mapped z codes"
        )
    return dict(state), dict(options), latent_avg


def _architecture(
    encoder_type: str, state: Mapping[str, Tensor], options: Mapping[str, Any], source: str
) -> Architecture:
    shapes = {key: list(value.shape) for key, value in state.items()}
    encoder = {key[8:]: shape for key, shape in shapes.items() if key.startswith("encoder.")}
    try:
        arguments = official_arguments(encoder_type, encoder)
        channels = generator_channels(shapes)
    except KeyError as error:
        raise ModelError(
            f"{source}: weight '{error.args[0]}' is missing for a {encoder_type} model"
        ) from error
    mapping = [key for key in shapes if re.match(r"decoder\.style\.\d+\.weight", key)]
    starts = arguments["input_channels"] != 3 or bool(options.get("start_from_latent_avg", True))
    cars = "car" in str(options.get("dataset_type", ""))
    return Architecture(
        encoder_type, arguments, channels, len(mapping), CARS_INPUT if cars else INPUT, starts
    )


def generator_channels(shapes: Mapping[str, list[int]]) -> dict[int, int]:
    """Width per resolution of the generator under `decoder.`; `KeyError` without its input."""
    channels = {4: shapes["decoder.input.input"][1]}
    while (up := f"decoder.convs.{2 * len(channels) - 2}.conv.weight") in shapes:
        channels[4 * 2 ** len(channels)] = shapes[up][1]
    return channels


def _agree(architecture: Architecture, options: Mapping[str, Any], source: str) -> None:
    size = max(architecture.channels)
    rows = architecture.encoder_arguments["n_styles"]
    told = options.get("output_size", options.get("stylegan_size", size))
    if int(told) != size:
        raise ModelError(f"{source}: opts.output_size is {told}, but the decoder renders {size} px")
    expected = 2 * len(architecture.channels)
    if rows != expected:
        raise ModelError(
            f"{source}: the encoder has {rows} style heads, a {size} px decoder takes {expected}"
        )
    channels = architecture.encoder_arguments["input_channels"]
    told = options.get("input_nc", channels)
    if int(told) != channels:
        raise ModelError(f"{source}: opts.input_nc is {told}, the encoder takes {channels}")
    if channels not in {3, 6}:
        raise ModelError(f"{source}: the encoder takes {channels} channels, expected 3 or 6")
    if options.get("learn_in_w"):
        raise ModelError(f"{source}: opts.learn_in_w is set; encoders of a single w are not known")


def _card(options: Mapping[str, Any], source: str) -> ModelCard:
    dataset = re.sub(r"_(encode|inversion)$", "", str(options.get("dataset_type", "unknown")))
    return ModelCard(name=source, domain=DOMAINS.get(dataset, dataset), source=source)
