"""Checkpoints of a training in a folder, local or at any fsspec URI."""

from __future__ import annotations

import io
import pickle
from typing import Any

import torch

from pipeline.errors import ModelError
from pipeline.storage import Store


class Checkpoints:
    """Read and write `<name>.pt`, the last checkpoint, and `<name>-best.pt`, the best weights.

    Writes are atomic: after a kill a file is either the old or the new one. Reading never executes
    code from a file.
    """

    def __init__(self, store: Store, name: str) -> None:
        self.store, self.name = store, name

    @property
    def uri(self) -> str:
        """URI of the last checkpoint."""
        return self.store.uri(f"{self.name}.pt")

    def save(self, state: dict[str, Any]) -> None:
        """Replace the last checkpoint."""
        self._put(f"{self.name}.pt", state)

    def load(self) -> dict[str, Any] | None:
        """Read the last checkpoint to the CPU; None if there is none. Raises `ModelError`."""
        return self._get(f"{self.name}.pt")

    def save_best(self, state: dict[str, Any]) -> None:
        """Replace the best weights."""
        self._put(f"{self.name}-best.pt", state)

    def load_best(self) -> dict[str, Any] | None:
        """Read the best weights; None before the first validation. Raises `ModelError`."""
        return self._get(f"{self.name}-best.pt")

    def _put(self, name: str, state: dict[str, Any]) -> None:
        content = io.BytesIO()
        torch.save(state, content)
        self.store.put(name, content.getvalue())

    def _get(self, name: str) -> dict[str, Any] | None:
        if not self.store.exists(name):
            return None
        try:
            content = io.BytesIO(self.store.get(name))
            state: dict[str, Any] = torch.load(content, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError) as error:
            raise ModelError(f"{self.store.uri(name)}: not a checkpoint of a training") from error
        return state
