"""Read files of weights into dictionaries of tensors, without executing any code in them."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from safetensors.torch import load as load_safetensors
from torch import Tensor

from pipeline.errors import ModelError
from pipeline.models.checkpoint import ADVICE, read_checkpoint
from pipeline.models.files import open_model_file
from pipeline.models.nvlabs import read_network
from pipeline.models.weights import check_held, is_plain


def read_model_file(uri: str) -> dict[str, Any]:
    """Return the content of a `.pt`, `.pth`, `.safetensors` or `.pkl` file at any fsspec URI.

    The result is an official dictionary, a bare state dict, or a generator's `{"g_ema",
    "latent_avg"}`. Raises `ModelError` and what `open_model_file` raises.
    """
    with open_model_file(uri) as file:
        suffix = PurePosixPath(uri).suffix
        if suffix == ".safetensors":
            return read_safetensors(file.read(), uri)
        return read_network(file, uri) if suffix == ".pkl" else read_checkpoint(file, uri)


def read_state(uri: str, what: str = "weights") -> tuple[dict[str, Tensor], str]:
    """Return the state dict and the sha256 of a `.safetensors` or torch file; tensors unchanged.

    From a training checkpoint (a dictionary with other entries too) the entry `state_dict` is
    taken. `what` says in errors what the file is for, as in "identity weights". Raises `ModelError`
    if the file is missing, damaged or holds anything else, `StorageError` if it cannot be read to
    its end, and `InputError` for a URI with credentials.
    """
    with open_model_file(uri, what) as file:
        content = file.read()
    source = f"{what} {uri!r}"
    if uri.endswith(".safetensors"):
        state = read_safetensors(content, source)
    else:
        state = read_checkpoint(io.BytesIO(content), source)
    if isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not all(map(_is_weight, state, state.values())):
        raise ModelError(f"{source}: not a state dict of tensors; give another file")
    check_held(state.values(), source)
    return state, hashlib.sha256(content).hexdigest()


def read_safetensors(content: bytes, source: str) -> dict[str, Any]:
    """Return the tensors in a safetensors file; `ModelError`, naming `source`, if it is damaged."""
    try:
        return dict(load_safetensors(content))
    except Exception as error:  # its own errors, and torch's for a dtype that torch lacks
        raise ModelError(f"{source}: damaged, or not a safetensors file; {ADVICE}") from error


def _is_weight(name: object, value: object) -> bool:
    return isinstance(name, str) and isinstance(value, Tensor) and is_plain(value)


def check_entries(
    expected: Mapping[str, Tensor],
    given: Mapping[str, Any],
    refusal: str,  # begins the message: the file's name and what it was expected to be
) -> None:
    """Raise `ModelError` unless `given` has the keys and shapes of `expected` and no others."""
    wrong = [
        key
        for key in {**expected, **given}
        if getattr(given.get(key), "shape", None) != getattr(expected.get(key), "shape", None)
    ]
    if wrong:
        raise ModelError(
            f"{refusal}: {len(wrong)} of {len(expected)} entries differ, the first is {wrong[0]!r}"
        )
