"""Reads a state dict from a file without running anything that is in it."""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from pathlib import Path
from typing import Any

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


def _parsed(content: bytes, uri: str) -> Any:
    """What is in the file; runs no code from it. Raises `ModelError` if it is damaged."""
    try:
        if uri.endswith(".safetensors"):
            return load_safetensors(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of a protocol that it then refuses
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # of a damaged file torch's own unpickler raises whatever comes
        refused = re.search(r"GLOBAL (\S+)", str(error))
        what = f"it holds the class {refused[1]}" if refused else "it is damaged or of another kind"
        raise ModelError(
            f"identity weights {uri!r} are no safetensors or torch weight file: {what}; fetch it "
            "again, or name another"
        ) from error


def read_weight_file(uri: str) -> tuple[dict[str, Tensor], str]:
    """State dict and sha256 of a `.safetensors` or torch file, its tensors as they stand.

    Raises `ModelError` for one that is missing, damaged or holds something else, `StorageError`
    where it cannot be read to its end, and `InputError` for a URI with credentials.
    Of a training checkpoint, a dictionary with other things in it, the entry `state_dict`.
    """
    content = _read_bytes(uri)
    state = _parsed(content, uri)
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(map(_is_weight, state, state.values())):
        raise ModelError(f"identity weights {uri!r} hold no state dict of tensors: name another")
    return state, hashlib.sha256(content).hexdigest()


def _is_weight(name: object, value: object) -> bool:
    """Whether it is a name and numbers, one after another: not sparse, quantised or a stand-in."""
    if not isinstance(name, str) or not isinstance(value, Tensor):
        return False
    odd = value.is_quantized or value.is_complex() or value.is_meta
    return value.layout == torch.strided and not odd
