"""Training log: one JSON line per report, pictures, and TensorBoard event files on request."""

from __future__ import annotations

import io
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.models.pixels import to_pixels
from pipeline.redaction import finite
from pipeline.storage import Store


def summary_writer() -> Any:
    """Return TensorBoard's `SummaryWriter` class. Raises `ConfigError` if it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            "TensorBoard is not installed: pip install 'restyle-pipeline[train]', "
            "or train with --no-tensorboard"
        ) from error
    return SummaryWriter


class TensorBoard:
    """Write events to a local folder and copy the file to `tensorboard/` at each report.

    TensorBoard appends to its file, which object stores do not support. Events of earlier runs
    after `images`, where this run resumes, are hidden. Raises `ConfigError` when the package is not
    installed.
    """

    def __init__(self, store: Store, images: int) -> None:
        self.store = store
        self.folder = tempfile.TemporaryDirectory(prefix="tensorboard-")
        self.writer = summary_writer()(self.folder.name, purge_step=images + 1)

    def scalars(self, images: int, line: Mapping[str, Any]) -> None:
        """Add the numbers of a report; a list has one curve per step."""
        for name, value in line.items():
            if name == "images":
                continue
            if isinstance(value, list):
                for step, number in enumerate(value, start=1):
                    self.writer.add_scalar(f"{name}/step_{step}", number, images)
            else:
                self.writer.add_scalar(name, value, images)
        self._copy()

    def picture(self, images: int, pixels: NDArray[np.uint8]) -> None:
        """Add a picture, uint8 [h, w, 3]."""
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


class TrainLog:
    """Write `<name>.jsonl`; losses are means over the batches since the previous line.

    Each report replaces the whole file, as object stores cannot append. Checkpoints include the
    sums since the last line, so that a resumed run writes the same lines as an uninterrupted one.
    `seconds` counts from the previous line and `total_seconds` from the start, both without work
    lost to a kill and without the time between runs. NaN and infinity are written as null.
    """

    def __init__(self, store: Store, name: str) -> None:
        self.store, self.name = store, name
        self.tensorboard: TensorBoard | None = None
        self.lines: list[dict[str, Any]] = []
        self.sums: dict[str, float] = {}
        self.count = 0
        self.since = time.monotonic()

    def resume(self, images: int, pending: Mapping[str, Any]) -> None:
        """Resume at `images`; lines of later batches, whose work was lost, are dropped."""
        written = read_reports(self.store, self.name)
        self.lines = [line for line in written if line["images"] <= images]
        self.sums, self.count = dict(pending.get("sums", {})), int(pending.get("count", 0))
        self.since = time.monotonic() - float(pending.get("seconds", 0.0))

    def open_tensorboard(self, images: int) -> None:
        """Write events too, from `images` on, where the run starts or resumes."""
        self.tensorboard = TensorBoard(self.store, images)

    @property
    def pending(self) -> dict[str, Any]:
        """State since the last line, for the checkpoint."""
        seconds = time.monotonic() - self.since
        return {"sums": dict(self.sums), "count": self.count, "seconds": seconds}

    def add(self, losses: Mapping[str, Tensor]) -> None:
        """Add the scalar losses of one batch."""
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value)
        self.count += 1

    def report(self, images: int, facts: Mapping[str, Any]) -> None:
        """Write and print a line with `facts` and the mean losses, and reset the sums."""
        now = time.monotonic()
        means = {name: round(total / self.count, 5) for name, total in self.sums.items()}
        line = {"images": images, **facts, **means, "seconds": round(now - self.since, 1)}
        line["total_seconds"] = total_seconds([*self.lines, line])
        self.lines.append(line)
        text = "".join(_as_json(entry) + "\n" for entry in self.lines)
        self.store.put(f"{self.name}.jsonl", text.encode())
        print(_as_json(line), flush=True)
        if self.tensorboard:
            self.tensorboard.scalars(images, line)
        self.sums, self.count, self.since = {}, 0, now

    def picture(self, images: int, cells: Tensor) -> None:
        """Save `cells` [rows, columns, 3, h, w] in [-1, 1] as `pictures/<name>-<images>.png`."""
        pixels = grid(cells)
        content = io.BytesIO()
        Image.fromarray(pixels).save(content, "PNG")
        self.store.put(f"pictures/{self.name}-{images:09d}.png", content.getvalue())
        if self.tensorboard:
            self.tensorboard.picture(images, pixels)

    def close(self) -> None:
        """Flush and close TensorBoard."""
        if self.tensorboard:
            self.tensorboard.close()


def _as_json(line: Mapping[str, Any]) -> str:
    return json.dumps(finite(line), allow_nan=False)


def grid(cells: Tensor) -> np.ndarray:
    """Tile cells [rows, columns, 3, h, w] in [-1, 1] to one uint8 [rows*h, columns*w, 3]."""
    rows, columns, _, height, width = cells.shape
    pixels = to_pixels(cells.flatten(0, 1)).reshape(rows, columns, height, width, 3)
    return pixels.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, 3)


def read_reports(store: Store, name: str) -> list[dict[str, Any]]:
    """Return the lines that a `TrainLog` wrote, [] when there is no file."""
    if not store.exists(f"{name}.jsonl"):
        return []
    return [json.loads(line) for line in store.get(f"{name}.jsonl").decode().splitlines()]


def total_seconds(lines: Sequence[Mapping[str, Any]]) -> float:
    """Return the seconds of a training up to the last of its log lines, over all its runs."""
    return round(sum(float(line["seconds"]) for line in lines), 1)
