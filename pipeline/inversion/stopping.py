"""Stop rule of adaptive steps, and the step at which it would have ended a finished loop.

A step has two measures. *Improvement* (flag `--stop-gain`): decrease of the mean squared error in
[-1, 1], the table's L2. The next step improves about a third as much; the change of the image or of
the code predicts that less well. *Residual*: relative change of the code, in the median row. Rows
that feed only demodulated layers have no scale of their own and may grow without limit: hence
relative changes, and the median.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipeline.errors import ConfigError, ShapeError
from pipeline.inversion.result import Inversion

TINY = 1e-12  # avoids a division by 0 for a row of zeros


@dataclass(frozen=True)
class StopRule:
    """Bounds of improvement and residual: a face stops after a step that is below both.

    A residual of 1 means that the median row changed by its own length. The defaults are calibrated
    on the demo model; `jobs/calibrate_stop.py` finds those of another model. Raises `ConfigError`
    for invalid bounds.
    """

    improvement: float = 0.00167
    residual: float = 1.0
    min_steps: int = 1  # of every face
    max_steps: int = 10  # of every face

    def __post_init__(self) -> None:
        if not 1 <= self.min_steps <= self.max_steps:
            raise ConfigError(
                "a stop rule needs 1 <= min_steps <= max_steps, "
                f"got min_steps {self.min_steps}, max_steps {self.max_steps}"
            )
        if not (self.improvement == self.improvement and self.residual > 0):
            raise ConfigError(
                "a stop rule needs a number as improvement and a residual above 0, "
                f"got {self.improvement} and {self.residual}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the rule as a JSON object, with the keys of a table's fingerprint."""
        return {
            "gain": self.improvement,
            "residual": self.residual,
            "least": self.min_steps,
            "most": self.max_steps,
        }

    def should_stop(self, improvement: Tensor, residual: Tensor, steps_made: Tensor) -> Tensor:
        """Return which faces stop, bool, by the measures of their last step."""
        is_below = (improvement < self.improvement) & (residual < self.residual)
        return is_below & (steps_made >= self.min_steps)


class StepMeasures(NamedTuple):
    """Measures of every step of n faces, or of one step; NaN if an image or code is not finite."""

    improvement: Tensor  # [n, steps] or [n], infinite if the image before is unknown
    residual: Tensor  # [n, steps] or [n]


def improvement(targets: Tensor, before: Tensor | None, after: Tensor) -> Tensor:
    """Return the decrease of L2 [n] from images `before` to `after`, [n, 3, h, w]."""
    if before is None:
        return torch.full((len(after),), float("inf"), device=after.device)
    return squared_error(targets, before) - squared_error(targets, after)


def squared_error(targets: Tensor, images: Tensor) -> Tensor:
    """Return the table's L2 [n]: mean squared error of images clamped to [-1, 1]."""
    return (images.clamp(-1, 1) - targets).square().mean(dim=(1, 2, 3))


def residual(before: Tensor, after: Tensor) -> Tensor:
    """Return the median over rows of the relative change [n] of codes [n, rows, 512]."""
    change = torch.linalg.vector_norm(after - before, dim=2)
    relative: Tensor = change / torch.linalg.vector_norm(after, dim=2).clamp_min(TINY)
    return relative.median(dim=1)[0]


def step_measures(inversion: Inversion, images: Tensor) -> StepMeasures:
    """Return the measures of every step for targets `images` [n, 3, h, w].

    Raises `ShapeError` if their shape is not that of the inverted images.
    """
    rendered = inversion.step_images
    if images.shape != rendered[:, 0].shape:
        raise ShapeError(
            f"images: got {list(images.shape)}, expected {list(rendered[:, 0].shape)} as inverted"
        )
    images = images.to(rendered.device)
    before = [inversion.start_images, *rendered.unbind(dim=1)]
    codes = [inversion.start, *inversion.w_plus.unbind(dim=1)]
    improvements = [improvement(images, before[t], rendered[:, t]) for t in range(inversion.steps)]
    residuals = [residual(codes[t], codes[t + 1]) for t in range(inversion.steps)]
    return StepMeasures(torch.stack(improvements, dim=1), torch.stack(residuals, dim=1))


def converged(inversion: Inversion, images: Tensor, rule: StopRule) -> Tensor:
    """Return which faces `rule` stops within the steps that they made, bool [n]."""
    steps = torch.arange(inversion.steps, device=inversion.steps_made.device)
    stops = _stops(step_measures(inversion, images), rule)
    return (stops & (steps < inversion.steps_made[:, None])).any(dim=1)


def step_of(measured: StepMeasures, rule: StopRule) -> Tensor:
    """Return the step, from 1, after which `rule` stops each face, int64 [n].

    `measured` are those of `steps` steps of every face. If the rule stops none of them,
    `rule.max_steps`, or `steps` if fewer. These are the steps that `invert_adaptively` makes.
    """
    stops = _stops(measured, rule)
    first = torch.where(stops.any(dim=1), stops.int().argmax(dim=1) + 1, stops.shape[1])
    return first.clamp(max=rule.max_steps)


def _stops(measured: StepMeasures, rule: StopRule) -> Tensor:
    """Return after which of the steps `rule` stops, bool [n, steps]."""
    steps = torch.arange(measured.improvement.shape[1], device=measured.improvement.device)
    return rule.should_stop(*measured, steps_made=steps + 1)
