"""Find the cheapest stop rule with the quality of a fixed number of steps.

Every face is inverted once with the maximum number of steps. All rules are then evaluated on these
measurements, because a face that stops earlier has the same steps before.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.alignment import Aligner, AlignmentSettings
from pipeline.errors import InputError, ShapeError, printable
from pipeline.images import Rejection, RejectReason
from pipeline.inversion import (
    StepMeasures,
    StopRule,
    invert,
    invert_adaptively,
    step_measures,
    step_of,
)
from pipeline.metrics import MetricEvaluator
from pipeline.models import RestyleModel
from pipeline.models.pixels import to_unit
from pipeline.storage import Sample, spread_samples

_LOGGER = logging.getLogger(__name__)


def read_crops(uri: str, limit: int, settings: AlignmentSettings) -> Tensor:
    """Read one face each of up to `limit` samples of an input, [n, 3, h, w] in [-1, 1].

    Rejects are logged and left out. Raises `InputError` when no face is left.
    """
    aligner = Aligner(settings)
    crops = []
    for sample in spread_samples(uri, limit):
        try:
            crops.append(_crop(aligner, sample))
        except Rejection as rejection:
            _LOGGER.warning("left out: %s: %s", printable(sample.key), rejection)
    if not crops:
        raise InputError(f"'{uri}' has no faces to calibrate on")
    return to_unit(np.stack(crops))


def _crop(aligner: Aligner, sample: Sample) -> NDArray[np.uint8]:
    if sample.reject:
        raise Rejection(RejectReason(sample.reject), sample.detail)
    return aligner.align(sample.content).faces[0].pixels


GAINS = 48  # number of bounds to try: quantiles of the measured improvements
RESIDUALS = (1.0, 0.5, 0.35, 0.25, 0.2, 0.17, 0.14, 0.12, 0.1)  # 1: a whole row may change


@dataclass(frozen=True)
class Point:
    """A stop rule with its mean steps and mean L2."""

    rule: StopRule
    steps: float
    l2: float  # of the best step by LPIPS, as in the table's column
    last_l2: float  # of the last step


@dataclass(frozen=True)
class Trace:
    """Measurements of n faces after each step, [n, steps] each: quality and the rule's inputs."""

    l2: Tensor
    lpips: Tensor
    measured: StepMeasures

    @property
    def best_l2(self) -> Tensor:
        """L2 of the best step by LPIPS so far, which a table would have, [n, steps]."""
        return self.l2.gather(1, self.lpips.cummin(dim=1).indices)

    def with_rule(self, rule: StopRule) -> Point:
        """Return the result of `rule` on these faces."""
        return self._point(rule, step_of(self.measured, rule))

    def with_steps(self, steps: int) -> Point:
        """Return the result of `steps` steps for every face."""
        rule = StopRule(improvement=float("-inf"), min_steps=steps, max_steps=steps)
        return self._point(rule, torch.full((len(self.l2),), steps))

    def _point(self, rule: StopRule, steps: Tensor) -> Point:
        index = steps[:, None] - 1
        best, last = (float(l2.gather(1, index).mean()) for l2 in (self.best_l2, self.l2))
        return Point(rule, float(steps.double().mean()), best, last)


def trace(model: RestyleModel, images: Tensor, *, steps: int, batch_size: int) -> Trace:
    """Invert `images` [n, 3, h, w] with `steps` steps; return measurements, without images.

    Faces whose code or image has NaN or infinity are left out. Raises `ShapeError` when none is
    left.
    """
    meter = MetricEvaluator(model.latent_avg.device.type, identity="none")
    l2, lpips, gains, residuals = [], [], [], []
    for batch in images.split(batch_size):
        result = invert(model, batch, steps=steps)
        measures = meter.measure(batch, result.step_images, result.w_plus, result.latent_avg)
        changes, finite = step_measures(result, batch), result.finite.cpu()
        l2.append(torch.from_numpy(measures["l2"])[finite])
        lpips.append(torch.from_numpy(measures["lpips"])[finite])
        gains.append(changes.improvement.cpu()[finite])
        residuals.append(changes.residual.cpu()[finite])
    measured = StepMeasures(torch.cat(gains), torch.cat(residuals))
    joined = Trace(torch.cat(l2), torch.cat(lpips), measured)
    if not len(joined.l2):
        raise ShapeError("a stop rule cannot be calibrated without a face that inverts")
    return joined


def candidates(traced: Trace, most: int) -> Iterator[StopRule]:
    """Yield the rules to try: quantiles of the gains after the first step, and all residuals."""
    gains = traced.measured.improvement[:, 1:most].flatten()
    quantiles = torch.linspace(0.02, 0.98, GAINS)
    for gain in torch.quantile(gains, quantiles).tolist():
        for residual in RESIDUALS:
            # More than three digits would be noise with a hundred faces.
            yield StopRule(improvement=float(f"{gain:.3g}"), residual=residual, max_steps=most)


def calibrate(traced: Trace, *, most: int, like_steps: int, tolerance: float) -> Point:
    """Return the rule with the fewest steps and a mean L2 within `tolerance` of `like_steps` steps.

    Of equal rules it returns the least strict one, and the rule with the lowest L2 when no rule is
    within the tolerance.
    """
    allowed = (1 + tolerance) * traced.with_steps(like_steps).l2
    points = [traced.with_rule(rule) for rule in candidates(traced, most)]
    good = [point for point in points if point.l2 <= allowed]
    if not good:
        return min(points, key=lambda point: point.l2)
    return min(good, key=lambda point: (point.steps, -point.rule.residual, point.l2))


def curve(traced: Trace, rule: StopRule, gains: Sequence[float]) -> list[Point]:
    """Return the results of `rule` with other bounds on the gain, in rising order."""
    return [
        traced.with_rule(StopRule(gain, rule.residual, rule.min_steps, rule.max_steps))
        for gain in sorted(set(gains))
    ]


def clock(model: RestyleModel) -> float:
    """Return the time in seconds after all work on the model's device; CUDA calls return early."""
    if model.latent_avg.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds_per_face(
    model: RestyleModel, faces: Tensor, rule: StopRule, like: int, batch: int
) -> tuple[float, float]:
    """Return wall-clock seconds of the fixed and of the adaptive loop over all faces."""
    start = clock(model)
    for images in faces.split(batch):
        invert(model, images, steps=like)
    middle = clock(model)
    invert_adaptively(model, faces, rule, batch_size=batch, full_size=False)
    end = clock(model)
    return (middle - start) / len(faces), (end - middle) / len(faces)
