"""Which stop rule keeps the quality of a fixed number of steps, and what it costs.

Loops are run once to their longest; every rule is then tried on their measures alone, as a face
that stops earlier has the same steps before.
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
    """The faces of up to `limit` samples of an input, [n, 3, h, w] in [-1, 1], a face a sample.

    Rejects are left out, and named on stderr. Raises `InputError` where no face is left.
    """
    aligner = Aligner(settings)
    crops = []
    for sample in spread_samples(uri, limit):
        try:
            crops.append(_crop(aligner, sample))
        except Rejection as rejection:
            _LOGGER.warning("left out: %s: %s", printable(sample.key), rejection)
    if not crops:
        raise InputError(f"'{uri}' has no face to calibrate on")
    return to_unit(np.stack(crops))


def _crop(aligner: Aligner, sample: Sample) -> NDArray[np.uint8]:
    if sample.reject:
        raise Rejection(RejectReason(sample.reject), sample.detail)
    return aligner.align(sample.content).faces[0].pixels


GAINS = 48  # bounds that are tried, quantiles of the gains that were met
RESIDUALS = (1.0, 0.5, 0.35, 0.25, 0.2, 0.17, 0.14, 0.12, 0.1)  # 1: a whole row may change


@dataclass(frozen=True)
class Point:
    """A rule with what it gives on average."""

    rule: StopRule
    steps: float
    l2: float  # of the best step by LPIPS, as the table's column has it
    last_l2: float  # of the last step


@dataclass(frozen=True)
class Trace:
    """Loops of n faces after each step, [n, steps] each: the quality, and what the rule sees."""

    l2: Tensor
    lpips: Tensor
    measured: StepMeasures

    @property
    def kept_l2(self) -> Tensor:
        """L2 of the best step by LPIPS if the loop stopped there: the table's, [n, steps]."""
        return self.l2.gather(1, self.lpips.cummin(dim=1).indices)

    def tried(self, rule: StopRule) -> Point:
        """What `rule` gives on these faces."""
        return self._point(rule, step_of(self.measured, rule))

    def fixed(self, steps: int) -> Point:
        """What `steps` steps for every face give."""
        rule = StopRule(improvement=float("-inf"), min_steps=steps, max_steps=steps)
        return self._point(rule, torch.full((len(self.l2),), steps))

    def _point(self, rule: StopRule, steps: Tensor) -> Point:
        at = steps[:, None] - 1
        kept, last = (float(l2.gather(1, at).mean()) for l2 in (self.kept_l2, self.l2))
        return Point(rule, float(steps.double().mean()), kept, last)


def trace(model: RestyleModel, images: Tensor, *, steps: int, batch_size: int) -> Trace:
    """Run all of `images` [n, 3, h, w] for `steps` steps; keeps numbers, no images.

    Faces whose code or image is not finite are left out. Raises `ShapeError` where none is left.
    """
    meter = MetricEvaluator(model.latent_avg.device.type, identity="none")
    l2, lpips, gains, residuals = [], [], [], []
    for batch in images.split(batch_size):
        found = invert(model, batch, steps=steps)
        measures = meter.measure(batch, found.step_images, found.w_plus, found.latent_avg)
        seen, whole = step_measures(found, batch), found.finite.cpu()
        l2.append(torch.from_numpy(measures["l2"])[whole])
        lpips.append(torch.from_numpy(measures["lpips"])[whole])
        gains.append(seen.improvement.cpu()[whole])
        residuals.append(seen.residual.cpu()[whole])
    measured = StepMeasures(torch.cat(gains), torch.cat(residuals))
    joined = Trace(torch.cat(l2), torch.cat(lpips), measured)
    if not len(joined.l2):
        raise ShapeError("a stop rule cannot be calibrated without a face that inverts")
    return joined


def candidates(traced: Trace, most: int) -> Iterator[StopRule]:
    """Rules worth trying on these loops: gains that occur after the first step, all residuals."""
    met = traced.measured.improvement[:, 1:most].flatten()
    shares = torch.linspace(0.02, 0.98, GAINS)
    for gain in torch.quantile(met, shares).tolist():
        for residual in RESIDUALS:
            # Three digits are as much as a hundred faces tell.
            yield StopRule(improvement=float(f"{gain:.3g}"), residual=residual, max_steps=most)


def calibrate(traced: Trace, *, most: int, like_steps: int, tolerance: float) -> Point:
    """The rule with the fewest steps whose mean L2 is within `tolerance` of `like_steps` steps.

    Of equals the one that asks least. Where none is within it, the one with the lowest L2.
    """
    allowed = (1 + tolerance) * traced.fixed(like_steps).l2
    points = [traced.tried(rule) for rule in candidates(traced, most)]
    good = [point for point in points if point.l2 <= allowed]
    if not good:
        return min(points, key=lambda point: point.l2)
    return min(good, key=lambda point: (point.steps, -point.rule.residual, point.l2))


def curve(traced: Trace, rule: StopRule, gains: Sequence[float]) -> list[Point]:
    """`rule` with other bounds on the gain, from the strictest to the loosest."""
    return [
        traced.tried(StopRule(gain, rule.residual, rule.min_steps, rule.max_steps))
        for gain in sorted(set(gains))
    ]


def clock(model: RestyleModel) -> float:
    """Seconds at which all that was asked of the model's device is done: CUDA answers before."""
    if model.latent_avg.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds_a_face(
    model: RestyleModel, faces: Tensor, rule: StopRule, like: int, batch: int
) -> tuple[float, float]:
    """Wall-clock of the fixed and of the adaptive loop, the latter over all faces as one part."""
    begun = clock(model)
    for few in faces.split(batch):
        invert(model, few, steps=like)
    between = clock(model)
    invert_adaptively(model, faces, rule, batch_size=batch, full_size=False)
    ended = clock(model)
    return (between - begun) / len(faces), (ended - between) / len(faces)
