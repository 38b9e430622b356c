"""Inversion model: encoder, generator, average latent, and a card (name, domain, licence)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.errors import ModelError
from pipeline.models.encoders import ENCODER_TYPES, NO_ENCODER, NoEncoder
from pipeline.models.stylegan2 import LATENT_DIM, Generator, n_styles_of


@dataclass(frozen=True)
class Architecture:
    """Every property except the weights that decides what a model computes; plain JSON values.

    `channels` is the generator's width per resolution, `input_size` the encoder's (height, width).
    `starts_from_average` is False for a model whose codes are not offsets from the average latent.
    """

    encoder_type: str
    encoder_arguments: Mapping[str, Any]
    channels: Mapping[int, int]
    mapping_layers: int = 0
    input_size: tuple[int, int] = (256, 256)
    starts_from_average: bool = True

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object; JSON turns the keys of `channels` into text."""
        return {
            "encoder_type": self.encoder_type,
            "encoder_arguments": dict(self.encoder_arguments),
            "channels": {str(size): width for size, width in sorted(self.channels.items())},
            "mapping_layers": self.mapping_layers,
            "input_size": list(self.input_size),
            "starts_from_average": self.starts_from_average,
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Architecture:
        """Return the architecture in `record`. Raises `KeyError` for a missing or unknown entry."""
        unknown = set(record) - set(cls.__dataclass_fields__)
        if unknown:
            raise KeyError(sorted(unknown)[0])
        height, width = record["input_size"]
        return cls(
            encoder_type=str(record["encoder_type"]),
            encoder_arguments=dict(record["encoder_arguments"]),
            channels={int(size): int(wide) for size, wide in record["channels"].items()},
            mapping_layers=int(record["mapping_layers"]),
            input_size=(int(height), int(width)),
            starts_from_average=bool(record["starts_from_average"]),
        )


@dataclass(frozen=True)
class ModelCard:
    """Name, domain, source and licence of a model; does not affect any result."""

    name: str = "unnamed"
    domain: str = "unknown"
    source: str = "unknown"
    licence: str = "unknown"
    notes: Mapping[str, Any] = field(default_factory=dict)


class RestyleModel(nn.Module):
    """`encoder` and `generator` in evaluation mode, and the average latent `latent_avg`.

    The encoder takes `[n, input_channels, h, w]` in [-1, 1] and returns `[n, n_styles, 512]`. With
    6 channels the input is the target, then the current reconstruction. Inversion starts from
    `latent_avg` [n_styles, 512].
    """

    latent_avg: Tensor

    def __init__(self, architecture: Architecture, card: ModelCard | None = None) -> None:
        super().__init__()
        self.architecture = architecture
        self.card = card or ModelCard()
        self.encoder = build_encoder(architecture)
        self.generator = Generator(architecture.channels, architecture.mapping_layers)
        self.register_buffer("latent_avg", torch.zeros(self.n_styles, LATENT_DIM))
        self.eval()

    @property
    def name(self) -> str:
        """Name of the model's bundle."""
        return self.card.name

    @property
    def domain(self) -> str:
        """Content of the images: `faces`, `cars`, `church`, ..."""
        return self.card.domain

    @property
    def licence(self) -> str:
        """Licence of the weights."""
        return self.card.licence

    @property
    def metadata(self) -> dict[str, Any]:
        """Return the model's card as plain JSON values."""
        return asdict(self.card)

    @property
    def n_styles(self) -> int:
        """Number of rows of a W+ code."""
        return n_styles_of(self.generator_size)

    @property
    def generator_size(self) -> int:
        """Side of the generator's square output in pixels."""
        return max(self.architecture.channels)

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) of the encoder's input."""
        return self.architecture.input_size

    @property
    def frame_size(self) -> tuple[int, int]:
        """(height, width) of the part of the output that shows the image: 384x512 for cars."""
        height, width = self.input_size
        longest = max(height, width)
        return self.generator_size * height // longest, self.generator_size * width // longest

    @property
    def input_channels(self) -> int:
        """6 for a ReStyle encoder, 3 for a single-pass encoder."""
        return int(self.architecture.encoder_arguments["input_channels"])

    @property
    def single_pass(self) -> bool:
        """Return whether the encoder sees only the target, as those of pSp and e4e do."""
        return self.input_channels == 3

    @property
    def generator_alone(self) -> bool:
        """Return whether the model has only a generator, as one made from a generator's file."""
        return self.architecture.encoder_type == NO_ENCODER

    @property
    def fingerprint(self) -> str:
        """sha256 of the architecture and all weights: equal fingerprints give equal results.

        Independent of the order of keys, the file format, the device and the card. Reads every byte
        of the weights: about one second per gigabyte.
        """
        return digest_of(self.state_dict(), json.dumps(self.architecture.to_json(), sort_keys=True))

    def __repr__(self) -> str:
        """Return one line: name, domain, sizes, encoder type and the start of the fingerprint.

        Computes the fingerprint, so it takes about one second per gigabyte of weights.
        """
        sizes = f"{self.generator_size} px, {self.n_styles} styles"
        is_empty = any(tensor.is_meta for tensor in self.state_dict().values())
        weights = "without weights" if is_empty else self.fingerprint[:12]
        networks = f"{self.architecture.encoder_type}, {weights}"
        return f"RestyleModel('{self.name}', {self.domain}, {sizes}, {networks})"

    def frame(self, images: Tensor) -> Tensor:
        """Return the visible part of [n, 3, size, size], a view [n, 3, *frame_size]."""
        height, width = self.frame_size
        top, left = (images.shape[2] - height) // 2, (images.shape[3] - width) // 2
        return images[:, :, top : top + height, left : left + width]


def digest_of(weights: Mapping[str, Tensor], head: str = "") -> str:
    """Return the sha256 of `head` and of every name, shape, dtype and value of `weights`."""
    digest = hashlib.sha256(head.encode())
    for key, tensor in sorted(weights.items()):
        if key.endswith("num_batches_tracked"):
            continue  # counts training steps and does not affect evaluation
        digest.update(f"{key}{list(tensor.shape)}{tensor.dtype}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(np.ascontiguousarray(flat.numpy()).data)
    return digest.hexdigest()


def build_encoder(architecture: Architecture) -> nn.Module:
    """Return an untrained encoder of the type that `architecture` names.

    Raises `ModelError` for an unknown type or for arguments that it does not take.
    """
    build = {**ENCODER_TYPES, NO_ENCODER: NoEncoder}.get(architecture.encoder_type)
    if build is None:
        names = ", ".join(sorted(ENCODER_TYPES))
        raise ModelError(f"unknown encoder_type '{architecture.encoder_type}' (known: {names})")
    try:
        return build(**architecture.encoder_arguments)
    except TypeError as error:
        raise ModelError(
            f"encoder arguments do not fit {architecture.encoder_type}: {error}"
        ) from error
