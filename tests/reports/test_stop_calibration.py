"""Choose a stop rule from measurements of full-length loops."""

from __future__ import annotations

import pytest
import torch

from pipeline.errors import ShapeError
from pipeline.inversion import StepMeasures, StopRule, invert, invert_adaptively
from pipeline.models import load_model
from pipeline.reports.stop_calibration import Trace, calibrate, curve, trace


@pytest.fixture
def traces() -> Trace:
    """Return eight faces whose error above a minimum falls to a third with each step."""
    first = torch.linspace(0.01, 0.2, 8)[:, None]
    errors = 0.02 + first / 3 ** torch.arange(7)
    gains = errors[:, :-1] - errors[:, 1:]
    residuals = torch.full_like(gains, 0.3)
    return Trace(errors[:, 1:], errors[:, 1:], StepMeasures(gains, residuals))


def test_chosen_rule_has_the_fewest_steps(traces: Trace) -> None:
    chosen = calibrate(traces, most=6, like_steps=5, tolerance=0.01)
    fixed = traces.with_steps(5)
    assert chosen.l2 <= 1.01 * fixed.l2
    assert chosen.steps < 5
    looser = StopRule(chosen.rule.improvement * 4, chosen.rule.residual, 1, 6)
    assert traces.with_rule(looser).l2 > 1.01 * fixed.l2


def test_adaptive_steps_need_fewer_than_fixed(traces: Trace) -> None:
    for steps in (2, 3, 4):
        allowed = traces.with_steps(steps).l2 / traces.with_steps(5).l2 - 1
        chosen = calibrate(traces, most=6, like_steps=5, tolerance=allowed)
        assert chosen.steps < steps


def test_looser_bound_gives_fewer_steps_and_more_error(traces: Trace) -> None:
    points = curve(traces, StopRule(1e-3, 1.0, 1, 6), [1e-2, 1e-5, 1e-3])
    assert [point.rule.improvement for point in points] == [1e-5, 1e-3, 1e-2]
    assert points[0].steps > points[1].steps > points[2].steps
    assert points[0].l2 < points[1].l2 < points[2].l2


def test_l2_is_of_the_best_step_by_lpips() -> None:
    l2 = torch.tensor([[0.4, 0.3, 0.2]])
    lpips = torch.tensor([[0.9, 0.5, 0.6]])
    traced = Trace(l2, lpips, StepMeasures(l2, l2))
    assert traced.best_l2.tolist() == [pytest.approx([0.4, 0.3, 0.3])]
    assert traced.with_steps(3).l2 == pytest.approx(0.3)
    assert traced.with_steps(3).last_l2 == pytest.approx(0.2)


def test_lowest_l2_is_chosen_outside_the_tolerance(traces: Trace) -> None:
    strictest = calibrate(traces, most=2, like_steps=6, tolerance=0.0)
    assert strictest.steps == 2


def test_traces_predict_the_adaptive_loop(tiny_bundle: str) -> None:
    model = load_model(tiny_bundle)
    images = torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(3)) * 2 - 1
    traced = trace(model, images, steps=4, batch_size=4)
    gains = traced.measured.improvement.flatten().sort().values
    middle = gains[len(gains) // 4 : -(len(gains) // 4)]
    # In the widest gap, because gains are rounded differently in batches of another size.
    gap = int(middle.diff().argmax())
    rule = StopRule(improvement=float(middle[gap : gap + 2].mean()), residual=1.0, max_steps=4)
    adaptive = invert_adaptively(model, images, rule, batch_size=3)
    assert traced.with_rule(rule).steps == pytest.approx(float(adaptive.steps_made.double().mean()))
    last = (invert(model, images, steps=4).images.clamp(-1, 1) - images).square().mean()
    assert traced.with_steps(4).last_l2 == pytest.approx(float(last), rel=1e-4)


def test_faces_that_do_not_invert_are_refused(tiny_bundle: str) -> None:
    images = torch.full((2, 3, 64, 64), float("nan"))
    with pytest.raises(ShapeError, match="without a face that inverts"):
        trace(load_model(tiny_bundle), images, steps=2, batch_size=2)
