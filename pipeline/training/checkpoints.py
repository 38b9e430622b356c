"""Checkpoints of a training in a folder, local or at any fsspec URI."""

from __future__ import annotations

import io
import pickle
from typing import Any

import torch

from pipeline.errors import ModelError
from pipeline.storage import Store


def save_state(store: Store, name: str, state: dict[str, Any]) -> None:
    """Write the file `name`; after a kill it is either the old or the new one."""
    content = io.BytesIO()
    torch.save(state, content)
    store.put(name, content.getvalue())


def load_state(store: Store, name: str) -> dict[str, Any] | None:
    """Read the file `name` to the CPU; None if there is none.

    Never executes code from the file. Raises `ModelError` for a damaged one.
    """
    if not store.exists(name):
        return None
    try:
        content = io.BytesIO(store.get(name))
        state: dict[str, Any] = torch.load(content, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError) as error:
        raise ModelError(f"{store.uri(name)}: not a checkpoint of a training") from error
    return state
