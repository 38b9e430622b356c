"""Reads a state dict from a file without running anything that is in it."""

from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor

from pipeline.errors import ModelError, StorageError


def _read_bytes(uri: str) -> bytes:
    try:
        if "://" not in uri:
            return Path(uri).read_bytes()
        from pipeline.storage.uris import read_file  # only a weight file in a bucket needs it

        return read_file(uri)
    except (OSError, ValueError) as error:
        raise ModelError(f"identity weights {uri!r} cannot be read: {error}") from error
    except StorageError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        raise ModelError(f"identity weights {uri!r} cannot be read: not found") from error


def read_weight_file(uri: str) -> tuple[dict[str, Tensor], str]:
    """State dict and sha256 of a `.safetensors` or torch file.

    Raises `ModelError` for one that is missing or holds something else, `StorageError` where it
    cannot be read to its end, and `InputError` for a URI with credentials.
    Of a training checkpoint, a dictionary with other things in it, the entry `state_dict`.
    """
    content = _read_bytes(uri)
    state: Any
    try:
        if uri.endswith(".safetensors"):
            state = load_safetensors(content)
        else:
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, safetensors.SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"{uri!r} is no safetensors or torch weight file: {reason}") from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ModelError(f"{uri!r} holds no state dict of tensors")
    return state, hashlib.sha256(content).hexdigest()
