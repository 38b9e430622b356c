"""Write the official checkpoint dictionary, which the original ReStyle code loads and resumes."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import torch

from pipeline.choices import OFFICIAL_TYPES
from pipeline.errors import ModelError
from pipeline.models.domains import OWN_DOMAIN, PRESETS
from pipeline.models.encoders import WIDTHS
from pipeline.models.model import RestyleModel
from pipeline.storage import file_place

# The original code has these values fixed, and loads a file only if every weight fits.
MAPPING_LAYERS = 8
CHANNELS = {4: 512, 8: 512, 16: 512, 32: 512, 64: 512, 128: 256, 256: 128, 512: 64, 1024: 32}

DATASETS = {"faces": "ffhq_encode", "toonify": "toonify"}  # others are `<domain>_encode`


def original_refuses(model: RestyleModel) -> str | None:
    """Return why the original code cannot load `model`, or None if it can."""
    architecture = model.architecture
    if architecture.encoder_type not in OFFICIAL_TYPES:
        return f"the original code has no {architecture.encoder_type}"
    if architecture.mapping_layers != MAPPING_LAYERS:
        return (
            f"the original code's generator has {MAPPING_LAYERS} mapping layers, this one "
            f"{architecture.mapping_layers}"
        )
    widths = tuple(architecture.encoder_arguments.get("widths", WIDTHS))
    published = all(CHANNELS.get(side) == wide for side, wide in architecture.channels.items())
    if widths != WIDTHS or not published:
        return "the original code's networks have different channel widths"
    return None


def official_checkpoint(
    model: RestyleModel, options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return `model` as `{"state_dict", "latent_avg", "opts"}`, sharing its tensors.

    This project's loader reads it with any widths, the original code if `original_refuses` returns
    None. `options` override entries of `opts` that describe the training. Raises `ModelError` for
    an encoder that the original code does not have.
    """
    encoder_type = model.architecture.encoder_type
    if encoder_type not in OFFICIAL_TYPES:
        raise ModelError(
            f"'{model.name}' cannot be written as .pt: the original code has no {encoder_type}"
        )
    state = {
        key.replace("generator.", "decoder.", 1): value.detach()
        for key, value in model.state_dict().items()
        if key != "latent_avg"
    }
    opts = _options(model) | dict(options or {})
    return {"state_dict": state, "latent_avg": model.latent_avg.detach(), "opts": opts}


def save_official(model: RestyleModel, uri: str, options: Mapping[str, Any] | None = None) -> None:
    """Write `official_checkpoint` as a `.pt` file at any fsspec URI."""
    content = io.BytesIO()
    checkpoint = official_checkpoint(model, options)
    state = {key: value.cpu() for key, value in checkpoint["state_dict"].items()}
    average = checkpoint["latent_avg"].cpu()
    torch.save({**checkpoint, "state_dict": state, "latent_avg": average}, content)
    store, name = file_place(uri)
    store.put(name, content.getvalue())


def _options(model: RestyleModel) -> dict[str, Any]:
    """Return every option that the original scripts read to load a model or resume training it."""
    # Options that only the repositories of pSp and e4e read.
    single_pass = (
        {"label_nc": 0, "stylegan_size": model.generator_size} if model.single_pass else {}
    )
    own = {} if model.domain in PRESETS else {OWN_DOMAIN: model.domain}
    return {
        **single_pass,
        **own,
        "exp_dir": "experiment",
        "batch_size": 8,
        "test_batch_size": 8,
        "workers": 8,
        "test_workers": 8,
        "learning_rate": 1e-4,
        "optim_name": "ranger",
        "train_decoder": False,
        "start_from_latent_avg": model.architecture.starts_from_average,
        "lpips_lambda": 0.8,
        "id_lambda": 0.0,
        "l2_lambda": 1.0,
        "w_norm_lambda": 0.0,
        "moco_lambda": 0.0,
        "stylegan_weights": "",
        "checkpoint_path": None,
        "max_steps": 500_000,
        "image_interval": 100,
        "board_interval": 50,
        "val_interval": 5_000,
        "save_interval": 10_000,
        "n_iters_per_batch": 5,
        "device": "cuda:0",
        "input_nc": model.input_channels,
        "dataset_type": DATASETS.get(model.domain, f"{model.domain}_encode"),
        "encoder_type": model.architecture.encoder_type,
        "output_size": model.generator_size,
    }
