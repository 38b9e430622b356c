"""Read files of model weights (.pt, .pth, .safetensors, .pkl) into dictionaries of tensors."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import IO, Any

from safetensors.torch import load as load_safetensors

from pipeline.errors import ModelError
from pipeline.models.checkpoint import ADVICE, read_checkpoint
from pipeline.models.files import open_model_file
from pipeline.models.nvlabs import read_network


def read_model_file(uri: str) -> dict[str, Any]:
    """Return the content of a `.pt`, `.pth`, `.safetensors` or `.pkl` file at any fsspec URI.

    The result is an official dictionary, a bare state dict, or a generator's `{"g_ema",
    "latent_avg"}`. Executes no code of the file. Raises `ModelError` and what `open_model_file`
    raises.
    """
    with open_model_file(uri) as file:
        suffix = PurePosixPath(uri).suffix
        if suffix == ".safetensors":
            return _safetensors(file, uri)
        return read_network(file, uri) if suffix == ".pkl" else read_checkpoint(file, uri)


def _safetensors(file: IO[bytes], source: str) -> dict[str, Any]:
    content = file.read()
    try:
        return dict(load_safetensors(content))
    except Exception as error:  # its own errors, and torch's for a dtype that torch lacks
        raise ModelError(f"{source}: damaged, or not a safetensors file; {ADVICE}") from error
