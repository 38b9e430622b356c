"""States of a training run in a folder, on a disk or behind any fsspec URI."""

from __future__ import annotations

import io
import pickle
from typing import Any

import torch

from pipeline.errors import ModelError
from pipeline.storage import Store


class Checkpoints:
    """`<name>.pt`, what a run goes on from, and `<name>-best.pt`, its best averaged weights.

    Puts are atomic: a kill leaves the file before or the file after. Files are read without
    running anything that is in them.
    """

    def __init__(self, store: Store, name: str) -> None:
        self.store, self.name = store, name

    @property
    def uri(self) -> str:
        """Where the state that a run goes on from is kept."""
        return self.store.uri(f"{self.name}.pt")

    def save(self, state: dict[str, Any]) -> None:
        """Replace the state that a run goes on from."""
        self._put(f"{self.name}.pt", state)

    def load(self) -> dict[str, Any] | None:
        """The last state saved, on the CPU; None where there is none yet. Raises `ModelError`."""
        return self._get(f"{self.name}.pt")

    def save_best(self, state: dict[str, Any]) -> None:
        """Replace the best weights."""
        self._put(f"{self.name}-best.pt", state)

    def load_best(self) -> dict[str, Any] | None:
        """The best weights so far; None before the first validation. Raises `ModelError`."""
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
