"""Reads the state dict of a single network from a file without running anything that is in it."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from typing import Any

from safetensors.torch import load as load_safetensors
from torch import Tensor

from pipeline.errors import ModelError
from pipeline.models.checkpoint import ADVICE, read_checkpoint
from pipeline.models.files import open_model_file
from pipeline.models.weights import check_held, is_plain


def read_state(uri: str, what: str = "weights") -> tuple[dict[str, Tensor], str]:
    """State dict and sha256 of a `.safetensors` or torch file, its tensors as they stand.

    `what` names in errors what the file is for, as in "identity weights". Of a training checkpoint,
    a dictionary with other things in it, the entry `state_dict`. Raises `ModelError` for a file
    that is missing, damaged or holds something else, `StorageError` where it cannot be read to its
    end, and `InputError` for a URI with credentials.
    """
    with open_model_file(uri, what) as file:
        content = file.read()
    state = _parsed(content, uri, f"{what} {uri!r}")
    if isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not all(map(_is_weight, state, state.values())):
        raise ModelError(f"{what} {uri!r}: no state dict of tensors; name another")
    check_held(state.values(), f"{what} {uri!r}")
    return state, hashlib.sha256(content).hexdigest()


def _parsed(content: bytes, uri: str, source: str) -> dict[str, Any]:
    if not uri.endswith(".safetensors"):
        return read_checkpoint(io.BytesIO(content), source)
    try:
        return dict(load_safetensors(content))
    except Exception as error:  # beside its own errors those of torch, for a type that it lacks
        raise ModelError(f"{source}: damaged, or not a safetensors file; {ADVICE}") from error


def _is_weight(name: object, value: object) -> bool:
    return isinstance(name, str) and isinstance(value, Tensor) and is_plain(value)


def check_entries(
    expected: Mapping[str, Tensor],
    given: Mapping[str, Any],
    refusal: str,  # what the file is not, with its name
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
