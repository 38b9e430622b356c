"""Model bundles: folders with `model.safetensors` and `model.json`, loaded by name or URI.

`model.json` holds the architecture, the card (name, domain, source, licence), the dtype of the
stored weights, and the sha256 of the safetensors file, which every load verifies. Computation
always uses float32.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import torch
from safetensors.torch import save as save_safetensors
from torch import Tensor

from pipeline.errors import ModelError
from pipeline.models.checkpoint import load_checkpoint
from pipeline.models.domains import preset_of
from pipeline.models.files import (
    CHECKPOINT_SUFFIXES,
    RECORD_FILE,
    WEIGHTS_FILE,
    ModelHints,
    bundle_folder,
    open_model_file,
)
from pipeline.models.model import Architecture, ModelCard, RestyleModel
from pipeline.models.state_files import read_model_file, read_safetensors
from pipeline.models.weights import assemble

FORMAT = 1
STORED = {"float32": torch.float32, "float16": torch.float16}


def load_model(
    name_or_uri: str | Mapping[str, Any],
    device: str | torch.device = "cpu",
    *,
    encoder_type: str | None = None,
    domain: str | None = None,
    estimate_latent_avg: bool = False,
) -> RestyleModel:
    """Return the model called `name_or_uri`: a name, a bundle folder or a file, at any fsspec URI.

    An official dictionary is accepted too; on a CPU the model shares its tensors. The model is in
    evaluation mode, float32, without gradients. `encoder_type` is for checkpoints whose options
    name none, `domain` overrides that of the file, and with `estimate_latent_avg` a missing average
    latent is estimated. Raises `ModelError` if the model or device does not exist, or if the file
    is damaged or does not fit, and `StorageError` if it cannot be read.
    """
    place = _device(device)
    hints = ModelHints(
        encoder_type=encoder_type, domain=domain, estimate_latent_avg=estimate_latent_avg
    )
    if isinstance(name_or_uri, Mapping):
        return load_checkpoint(name_or_uri, **hints).to(place)
    name_or_uri = str(name_or_uri)
    path = PurePosixPath(name_or_uri)
    if path.suffix in CHECKPOINT_SUFFIXES:
        content = read_model_file(name_or_uri)
        return load_checkpoint(content, source=path.name, **hints).to(place)
    folder = bundle_folder(name_or_uri)
    return _with_hints(_load_bundle(folder), hints, folder).to(place)


def _with_hints(model: RestyleModel, hints: ModelHints, folder: str) -> RestyleModel:
    """Give a bundle's model the user's domain; check the encoder type, which a bundle stores."""
    encoder_type, domain = hints["encoder_type"], hints["domain"]
    if encoder_type and encoder_type != model.architecture.encoder_type:
        raise ModelError(
            f"{folder}: its encoder is a {model.architecture.encoder_type}: leave out "
            f"--encoder-type {encoder_type}"
        )
    if domain and domain != model.domain:
        (height, width), (tall, wide) = model.input_size, preset_of(domain).input_size
        if height * wide != width * tall:
            raise ModelError(
                f"{folder}: its encoder takes {height}x{width}, and images of {domain} are cut to "
                f"{tall}x{wide}: choose another --domain, or convert the official checkpoint again "
                "with jobs/convert_model.py --domain"
            )
        notes = {name: note for name, note in model.card.notes.items() if name != "domain"}
        model.card = dataclasses.replace(model.card, domain=domain, notes=notes)
    return model


def save_bundle(model: RestyleModel, folder_uri: str, *, stored: str = "float32") -> None:
    """Write `model` as a bundle to a folder (any fsspec URI); `model.json` is written last.

    `stored` is `float32` or `float16`; a float16 bundle loads with rounded weights, so its
    fingerprint differs. Raises `ModelError` for another dtype, and for a weight that float16 cannot
    represent.
    """
    if stored not in STORED:
        raise ModelError(f"weights are stored as float32 or float16, not {stored!r}")
    tensors = {key: _as_stored(key, value, stored) for key, value in model.state_dict().items()}
    content = save_safetensors({key: tensor.contiguous() for key, tensor in tensors.items()})
    record = {
        "format": FORMAT,
        **model.metadata,
        "architecture": model.architecture.to_json(),
        "stored": stored,
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    from pipeline.storage import Store  # local models load without fsspec

    folder = Store(str(folder_uri))
    folder.put(WEIGHTS_FILE, content)
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    folder.put(RECORD_FILE, text.encode())


def _as_stored(key: str, tensor: Tensor, stored: str) -> Tensor:
    tensor = tensor.detach().cpu()
    if not tensor.is_floating_point():
        return tensor
    rounded = tensor.to(STORED[stored])
    if not torch.equal(rounded.isfinite(), tensor.isfinite()):
        largest = torch.finfo(STORED[stored]).max
        raise ModelError(
            f"weight '{key}' reaches {float(tensor.abs().max()):g}, more than {stored} can hold "
            f"({largest:g}): store the model as float32"
        )
    return rounded


def _device(device: str | torch.device) -> torch.device:
    try:
        place = torch.device(device)
        torch.empty(0, device=place)  # raises if the device does not exist
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).split("\n", 1)[0]
        raise ModelError(f"cannot move a model to device '{device}': {reason}") from error
    return place


def _load_bundle(folder: str) -> RestyleModel:
    with open_model_file(f"{folder}/{RECORD_FILE}") as file:
        content = file.read()
    record = _parsed(content, folder)
    with open_model_file(f"{folder}/{WEIGHTS_FILE}") as file:
        content = file.read()
    weights = _verified(content, record, folder)
    del content
    latent_avg = weights.pop("latent_avg", None)
    if latent_avg is None:
        raise ModelError(f"{folder}: weight 'latent_avg' is missing")
    try:
        architecture = Architecture.from_json(record["architecture"])
        words = {key: str(record[key]) for key in ("name", "domain", "source", "licence")}
        card = ModelCard(**words, notes=dict(record["notes"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"{folder}: {RECORD_FILE} is incomplete or wrong at {error}") from error
    return assemble(architecture, weights, latent_avg, card, folder)


def _parsed(content: bytes, folder: str) -> Mapping[str, Any]:
    try:
        record = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{folder}: {RECORD_FILE} is not JSON") from error
    version = record.get("format") if isinstance(record, dict) else None
    if version != FORMAT:
        raise ModelError(f"{folder}: bundle format {version!r}, this version reads {FORMAT}")
    checked: Mapping[str, Any] = record
    return checked


def _verified(content: bytes, record: Mapping[str, Any], folder: str) -> dict[str, Tensor]:
    if hashlib.sha256(content).hexdigest() != record.get("sha256"):
        raise ModelError(f"{folder}: {WEIGHTS_FILE} does not have the sha256 in {RECORD_FILE}")
    return read_safetensors(content, f"{folder}/{WEIGHTS_FILE}")
