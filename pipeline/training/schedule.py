"""What both training stages share: learning rate, averaged weights, checkpoints, the log."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

WARM_UP_BATCHES = 100


def learning_rate(peak: float, batches: int, progress: float) -> float:
    """`peak` after a linear warm-up of 100 batches; cosine to zero over the second half.

    `progress` in [0, 1] is the share of the planned images seen.
    """
    warm = min(1.0, (batches + 1) / WARM_UP_BATCHES)
    late = min(1.0, max(0.0, 2 * progress - 1))
    return peak * warm * 0.5 * (1 + math.cos(math.pi * late))


@torch.no_grad()
def average_into(average: nn.Module, model: nn.Module, batches: int, horizon: int = 500) -> None:
    """Exponential moving average of weights over about `horizon` batches, shorter at the start."""
    keep = min(1 - 1 / horizon, (1 + batches) / (10 + batches))
    for weight, fast in zip(average.parameters(), model.parameters(), strict=True):
        weight.lerp_(fast, 1 - keep)
    for buffer, fast_buffer in zip(average.buffers(), model.buffers(), strict=True):
        buffer.copy_(fast_buffer)


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` beside `path` and rename: a kill leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def load_checkpoint_file(path: Path) -> dict[str, Any] | None:
    """The state that `save_checkpoint` wrote, or None where there is none yet."""
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


class Log:
    """Appends one JSON line a report to a file and prints it; losses are means since the last."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sums: dict[str, float] = {}
        self.count = 0
        self.since = time.monotonic()

    def add(self, losses: dict[str, Tensor]) -> None:
        """Take one batch's scalar losses in."""
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value)
        self.count += 1

    def report(self, **facts: Any) -> None:
        """Write the means and `facts`, and start anew."""
        now = time.monotonic()
        means = {name: round(total / self.count, 5) for name, total in self.sums.items()}
        line = json.dumps({**facts, **means, "seconds": round(now - self.since, 1)})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)
        self.sums, self.count, self.since = {}, 0, now


def last_report(path: Path) -> dict[str, Any]:
    """The last line that a `Log` wrote; empty where there is none."""
    lines = path.read_text().splitlines() if path.exists() else []
    report: dict[str, Any] = json.loads(lines[-1]) if lines else {}
    return report
