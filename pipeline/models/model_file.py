"""Read files of model weights (.pt, .pth, .safetensors, .pkl) into dictionaries of tensors."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from pipeline.models.checkpoint import read_checkpoint
from pipeline.models.files import open_model_file
from pipeline.models.nvlabs import read_network
from pipeline.models.state_files import read_safetensors


def read_model_file(uri: str) -> dict[str, Any]:
    """Return the content of a `.pt`, `.pth`, `.safetensors` or `.pkl` file at any fsspec URI.

    The result is an official dictionary, a bare state dict, or a generator's `{"g_ema",
    "latent_avg"}`. Executes no code of the file. Raises `ModelError` and what `open_model_file`
    raises.
    """
    with open_model_file(uri) as file:
        suffix = PurePosixPath(uri).suffix
        if suffix == ".safetensors":
            return read_safetensors(file.read(), uri)
        return read_network(file, uri) if suffix == ".pkl" else read_checkpoint(file, uri)
