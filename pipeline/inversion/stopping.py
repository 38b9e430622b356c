"""When a face has had enough steps: the rule, and where it would have stopped a finished loop.

Two measures of a step. *Gain*: the fall of the mean squared error in [-1, 1], the table's L2, that
the step brought. The next step's gain is about a third of it, so a bound on it is the most steps
that an image's error is worth; how far the image or the code moved predicts it worse. *Residual*:
the share of the code that the step changed, in the median row. Rows that feed only demodulated
layers have no scale of their own and may grow without end, hence shares, and hence the median.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.errors import ConfigError, ShapeError
from pipeline.inversion.result import Inversion

TINY = 1e-12  # a row of zeros has changed wholly, not infinitely


@dataclass(frozen=True)
class StopRule:
    """A face stops after a step whose gain and residual are both below these bounds.

    A residual of 1 asks little: that the median row changed by no more than its length. The
    defaults are calibrated on the demo model; another model's are its own, and
    `jobs/calibrate_stop.py` finds them. Raises `ConfigError` for a rule that cannot be followed.
    """

    gain: float = 0.00167
    residual: float = 1.0
    least: int = 1  # steps every face makes
    most: int = 10  # steps no face exceeds

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise ConfigError(
                f"a stop rule needs 1 <= least <= most, not least {self.least}, most {self.most}"
            )
        if not (self.gain == self.gain and self.residual > 0):
            raise ConfigError(
                f"a stop rule needs a number as gain and a residual above 0, not {self.gain} "
                f"and {self.residual}"
            )

    def fires(self, gain: Tensor, residual: Tensor, made: Tensor) -> Tensor:
        """Whether faces that made `made` steps are done, bool, by their last step's measures."""
        return (gain < self.gain) & (residual < self.residual) & (made >= self.least)


class StepMeasures(NamedTuple):
    """Of every step of n faces, or of one step; NaN where an image or code is not finite."""

    gain: Tensor  # [n, steps] or [n], infinite where the image before is unknown
    residual: Tensor  # [n, steps] or [n]


def gain(targets: Tensor, before: Tensor | None, after: Tensor) -> Tensor:
    """Fall of the mean squared error [n] from images `before` to `after`, [n, 3, h, w], clamped."""
    if before is None:
        return torch.full((len(after),), float("inf"), device=after.device)
    return squared_error(targets, before) - squared_error(targets, after)


def squared_error(targets: Tensor, images: Tensor) -> Tensor:
    """The table's L2 [n]: mean squared error of images clamped to [-1, 1]."""
    return (images.clamp(-1, 1) - targets).square().mean(dim=(1, 2, 3))


def residual(before: Tensor, after: Tensor) -> Tensor:
    """Median over rows of each row's change relative to the row, [n], of codes [n, rows, 512]."""
    change = torch.linalg.vector_norm(after - before, dim=2)
    share: Tensor = change / torch.linalg.vector_norm(after, dim=2).clamp_min(TINY)
    return share.median(dim=1)[0]


def step_measures(inversion: Inversion, images: Tensor) -> StepMeasures:
    """The measures of every step that was made for targets `images` [n, 3, h, w].

    Raises `ShapeError` where these are not the inversion's targets in shape.
    """
    seen = inversion.step_images
    if images.shape != seen[:, 0].shape:
        raise ShapeError(
            f"images: got {list(images.shape)}, expected {list(seen[:, 0].shape)} as inverted"
        )
    images = images.to(seen.device)
    befores = [inversion.start_images, *seen.unbind(dim=1)]
    codes = [inversion.start, *inversion.w_plus.unbind(dim=1)]
    gains = [gain(images, befores[t], seen[:, t]) for t in range(inversion.steps)]
    residuals = [residual(codes[t], codes[t + 1]) for t in range(inversion.steps)]
    return StepMeasures(torch.stack(gains, dim=1), torch.stack(residuals, dim=1))


def converged(inversion: Inversion, images: Tensor, rule: StopRule) -> Tensor:
    """Which faces `rule` would have stopped within the steps that they made, bool [n]."""
    measured = step_measures(inversion, images)
    return _holds(measured, rule, inversion.steps_made).any(dim=1)


def stopping_step(inversion: Inversion, images: Tensor, rule: StopRule) -> Tensor:
    """The step, from 1, after which `rule` stops each face, int64 [n].

    `rule.most`, or the steps that the face made if these are fewer, where it never holds before:
    the steps that `invert_adaptively` makes, if the inversion was given enough.
    """
    return step_of(step_measures(inversion, images), rule, inversion.steps_made)


def step_of(measured: StepMeasures, rule: StopRule, steps_made: Tensor | None = None) -> Tensor:
    """`stopping_step` by the measures [n, steps] of loops that are gone; None: all steps made."""
    made = steps_made
    if made is None:
        n, steps = measured.gain.shape
        made = torch.full((n,), steps, device=measured.gain.device)
    holds = _holds(measured, rule, made)
    first = torch.where(holds.any(dim=1), holds.int().argmax(dim=1) + 1, made)
    return torch.minimum(first, made).clamp(max=rule.most)


def _holds(measured: StepMeasures, rule: StopRule, steps_made: Tensor) -> Tensor:
    """Whether `rule` holds after each step that was made, bool [n, steps]."""
    steps = torch.arange(1, measured.gain.shape[1] + 1, device=steps_made.device)
    return rule.fires(*measured, made=steps) & (steps <= steps_made[:, None])
