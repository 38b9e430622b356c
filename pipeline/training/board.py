"""TensorBoard event files in a store; they need the extra `train` (the package tensorboard)."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError
from pipeline.storage import Store


def summary_writer() -> Any:
    """TensorBoard's class of writers. Raises `ConfigError` where the package is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            "TensorBoard is not installed: pip install 'restyle-pipeline[train]', "
            "or train with --no-tensorboard"
        ) from error
    return SummaryWriter


class Board:
    """Writes events to a local folder and copies the file to `tensorboard/` at each report.

    TensorBoard appends to its file, which an object store cannot. Raises `ConfigError` where the
    package is missing. Of the files of earlier runs it hides what comes after `images`, where this
    one goes on.
    """

    def __init__(self, store: Store, images: int = 0) -> None:
        self.store = store
        self.folder = tempfile.TemporaryDirectory(prefix="tensorboard-")
        self.writer = summary_writer()(self.folder.name, purge_step=images + 1)

    def scalars(self, images: int, line: Mapping[str, Any]) -> None:
        """The numbers of a report; a list has one curve a step."""
        for name, value in line.items():
            if name == "images":
                continue
            if isinstance(value, list):
                steps = {f"step_{step}": number for step, number in enumerate(value, start=1)}
                for step, number in steps.items():
                    self.writer.add_scalar(f"{name}/{step}", number, images)
            else:
                self.writer.add_scalar(name, value, images)
        self._copy()

    def picture(self, images: int, pixels: NDArray[np.uint8]) -> None:
        """One picture, uint8 [h, w, 3]."""
        self.writer.add_image("steps", pixels, images, dataformats="HWC")
        self._copy()

    def close(self) -> None:
        """Write the last events and remove the local folder."""
        self.writer.close()
        self._copy()
        self.folder.cleanup()

    def _copy(self) -> None:
        self.writer.flush()
        for path in Path(self.folder.name).iterdir():
            self.store.put(f"tensorboard/{path.name}", path.read_bytes())
