import numpy as np
import pytest
import torch

from pipeline.errors import ConfigError, ShapeError
from pipeline.metrics import MetricEvaluator
from pipeline.metrics import evaluator as evaluator_module
from pipeline.metrics.evaluator import best_step
from pipeline.metrics.identity import IdentityNetwork
from pipeline.metrics.lpips import load_lpips
from pipeline.metrics.pixel import enlarge
from pipeline.metrics.registry import METRICS

N_STYLES = 10
NAN = float("nan")


@pytest.fixture(scope="module")
def evaluator() -> MetricEvaluator:
    return MetricEvaluator(identity="none")


def batch(n=3, steps=2, side=32):
    """Return targets, reconstructions closer with every step, codes, and the average code."""
    generator = torch.Generator().manual_seed(1)
    targets = torch.rand(n, 3, side, side, generator=generator) * 1.6 - 0.8
    noise = torch.randn(n, steps, 3, side, side, generator=generator)
    closeness = 0.2 / torch.arange(1, steps + 1)[:, None, None, None]
    codes = torch.randn(n, steps, N_STYLES, 512, generator=generator)
    return targets, targets[:, None] + noise * closeness, codes, torch.zeros(N_STYLES, 512)


def test_steps_are_measured_like_single_pairs(evaluator):
    targets, steps, codes, average = batch()
    measures = evaluator.measure(targets, steps, codes, average)
    for face in range(3):
        for step in range(2):
            image = steps[face, step].clamp(-1, 1)
            l2 = (targets[face] - image).square().mean().item()
            lpips = load_lpips()(enlarge(targets[face : face + 1]), enlarge(image[None])).item()
            assert measures["l2"][face, step] == pytest.approx(l2, rel=1e-5)
            assert measures["psnr"][face, step] == pytest.approx(10 * np.log10(4 / l2), rel=1e-5)
            assert measures["lpips"][face, step] == pytest.approx(lpips, rel=1e-4)


def test_chunks_change_no_result(evaluator, monkeypatch):
    whole = evaluator.measure(*batch())
    monkeypatch.setitem(evaluator_module.CHUNK, "cpu", 2)
    parts = evaluator.measure(*batch())
    assert parts.values.keys() == whole.values.keys()
    for name in whole.values:
        np.testing.assert_allclose(parts[name], whole[name], rtol=1e-4)
    assert parts.best_step.tolist() == whole.best_step.tolist()
    assert parts.identity_missed == whole.identity_missed


def test_steps_not_made_are_nan(evaluator):
    targets, steps, codes, average = batch(steps=3)
    whole = evaluator.measure(targets, steps, codes, average)
    steps_made = torch.tensor([3, 1, 2])
    measures = evaluator.measure(targets, steps, codes, average, steps_made=steps_made)
    for name in ("l2", "psnr", "lpips", "residual_norm"):
        expected = whole[name].copy()
        expected[1, 1:] = expected[2, 2:] = NAN
        np.testing.assert_allclose(measures[name], expected, rtol=1e-4)
    assert measures.best_step.tolist() == [3, 1, 2]
    by_last = MetricEvaluator(identity="none", best_step_by="last")
    assert by_last.measure(*batch(steps=3), steps_made=steps_made).best_step.tolist() == [3, 1, 2]


@pytest.mark.parametrize("bad", [NAN, float("inf"), -float("inf")])
def test_a_non_finite_reconstruction_affects_no_other(evaluator, bad):
    targets, steps, codes, average = batch()
    clean = evaluator.measure(targets, steps, codes, average)
    steps[1, 0, 2, 5, 5] = bad
    measures = evaluator.measure(targets, steps, codes, average)
    for name in ("l2", "psnr", "lpips"):
        expected = clean[name].copy()
        expected[1, 0] = NAN
        np.testing.assert_allclose(measures[name], expected, rtol=1e-4)


def test_a_non_finite_target_keeps_the_last_step(evaluator):
    targets, steps, codes, average = batch()
    targets[0, 0, 0, 0] = NAN
    measures = evaluator.measure(targets, steps, codes, average)
    assert np.isnan(measures["lpips"]).tolist() == [[True, True], [False, False], [False, False]]
    assert measures.best_step[0] == 2


def test_reconstructions_are_clamped(evaluator):
    targets, _, codes, average = batch(n=1, steps=1)
    measures = evaluator.measure(torch.ones_like(targets), targets[:, None] * 0 + 7, codes, average)
    assert measures["l2"].item() == 0


def test_differences_below_a_level_are_measured(evaluator):
    targets, _, codes, average = batch(n=1, steps=1)
    measures = evaluator.measure(targets, targets[:, None] + 0.001, codes, average)
    assert measures["l2"].item() == pytest.approx(1e-6, rel=1e-3)


def test_bfloat16_reconstructions_are_measured_in_float32(evaluator):
    targets, steps, codes, average = batch()
    measures = evaluator.measure(targets, steps.bfloat16(), codes.bfloat16(), average)
    assert measures["lpips"].dtype == measures["residual_norm"].dtype == np.float32


def test_code_metrics_use_the_best_step(evaluator):
    targets, steps, codes, average = batch()
    codes[:, 1] = 2.0
    measures = evaluator.measure(targets, steps, codes, average)
    assert measures.best_step.tolist() == [2, 2, 2]
    assert measures["w_plus_variance"].tolist() == [0, 0, 0]
    assert measures["w_avg_distance"].tolist() == [2, 2, 2]


def test_a_part_without_faces_is_measured(evaluator):
    measures = evaluator.measure(*batch(n=0))
    assert measures["l2"].shape == measures["residual_norm"].shape == (0, 2)
    assert measures.best_step.shape == (0,)


def test_without_identity_no_face_is_missed(evaluator):
    measures = evaluator.measure(*batch())
    assert np.isnan(measures["id_similarity"]).all()
    assert measures.identity_missed == 0
    assert measures.identity(0) is None


@pytest.mark.parametrize("part", [0, 1, 2, 3])
def test_inconsistent_shapes_are_refused(evaluator, part):
    tensors = list(batch())
    tensors[part] = tensors[part][1:]
    with pytest.raises(ShapeError, match="metrics need targets"):
        evaluator.measure(*tensors)


def test_best_step_is_the_first_of_equals_and_skips_nan():
    table = torch.tensor([[3, 1, 2], [NAN, 5, 4], [NAN, NAN, NAN], [2, 2, 2]])
    last = torch.full((4,), 2)
    assert best_step(table, last).tolist() == [1, 2, 2, 0]
    assert best_step(table, last, higher_is_better=True).tolist() == [0, 1, 2, 0]


@pytest.mark.parametrize(("by", "expected"), [("lpips", 2), ("l2", 1), ("last", 3)])
def test_the_best_step_follows_the_chosen_metric(by, expected):
    targets, _, codes, average = batch(n=1, steps=3, side=64)
    grey = torch.nn.functional.avg_pool2d(targets, 9, stride=1, padding=4)
    steps = torch.stack([grey, targets + 0.9, -targets], dim=1).clamp(-1, 1)
    measured = MetricEvaluator(identity="none", best_step_by=by).measure(
        targets, steps, codes, average
    )
    assert measured.best_step.tolist() == [expected]


def test_an_unknown_best_step_is_refused():
    with pytest.raises(ConfigError, match="lpips, l2, id_similarity, last"):
        MetricEvaluator(identity="none", best_step_by="ssim")


def test_best_by_identity_needs_an_identity_network():
    with pytest.raises(ConfigError, match="needs an identity network"):
        MetricEvaluator(identity="none", best_step_by="id_similarity")


def test_identity_starts_before_lpips(monkeypatch):
    events = []

    class RecordedIdentity:
        definition = "made up"

        def begin(self, images):
            events.append(f"begin {len(images)}")
            return lambda: events.append("wait") or torch.ones(len(images), 1)

    evaluator = MetricEvaluator(identity="none")
    evaluator.identity = RecordedIdentity()
    embed = evaluator.lpips.embed
    monkeypatch.setattr(evaluator.lpips, "embed", lambda x: events.append("lpips") or embed(x))
    measures = evaluator.measure(*batch(steps=3), steps_made=torch.tensor([3, 1, 2]))
    begins, lpips, waits = ["begin 3", "begin 3", "begin 2", "begin 1"], ["lpips"] * 4, ["wait"] * 4
    assert events == begins + lpips + waits
    assert measures["id_similarity"].tolist()[0] == [1, 1, 1]


def test_every_measured_number_is_defined(evaluator):
    values = evaluator.measure(*batch()).values
    assert values.keys() == {metric.name for metric in METRICS}
    assert set(evaluator.definitions) == {*values, "best_step"}


class _PixelIdentity(IdentityNetwork):
    """Identity by a few pixels: descriptors that differ by image, and NaN for a black one."""

    definition = "cosine of pooled pixels"

    def __init__(self) -> None:
        self.searched = 0

    def begin(self, images):
        self.searched += len(images)
        features = torch.nn.functional.adaptive_avg_pool2d(images, 4).flatten(1)
        missing = (images.amax(dim=(1, 2, 3)) == -1)[:, None]
        features = torch.nn.functional.normalize(features).masked_fill(missing, NAN)
        return lambda: features


def test_identity_of_the_best_step_costs_two_searches():
    targets, steps, codes, average = batch(steps=3)
    steps[1] = steps[1].flip(0)  # its first step is the best one
    steps[2] = -1.0
    measured = {}
    for which in ("all", "best"):
        meter = MetricEvaluator(identity="none", identity_steps=which)
        meter.identity = _PixelIdentity()
        measured[which] = meter.measure(targets, steps, codes, average)
        assert meter.identity.searched == 3 * {"all": 4, "best": 2}[which]
    everything, best = measured["all"], measured["best"]
    assert best.best_step.tolist() == everything.best_step.tolist()
    assert best.best_step.tolist()[:2] == [3, 1]
    for face, step in ((0, 2), (1, 0)):
        expected = np.full(3, NAN, np.float32)
        expected[step] = everything["id_similarity"][face, step]
        np.testing.assert_array_equal(best["id_similarity"][face], expected)
    assert (everything.identity_missed, best.identity_missed) == (3, 1)
    assert best.row(0, 3)["id_similarity"] == pytest.approx(everything["id_similarity"][0, 2])
    for name in ("l2", "lpips", "psnr", "residual_norm", "w_avg_distance"):
        np.testing.assert_array_equal(best[name], everything[name])


def test_the_best_step_by_identity_needs_all_steps():
    with pytest.raises(ConfigError, match="identity of every step"):
        MetricEvaluator(best_step_by="id_similarity", identity_steps="best")


def test_bfloat16_lpips_stays_close_to_float32(evaluator):
    targets, steps, codes, average = batch(n=4)
    exact = evaluator.measure(targets, steps, codes, average)["lpips"]
    meter = MetricEvaluator(identity="none", dtype=torch.bfloat16)
    rounded = meter.measure(targets, steps, codes, average)["lpips"]
    assert rounded.dtype == np.float32
    assert rounded.mean() == pytest.approx(exact.mean(), rel=0.005)
    np.testing.assert_allclose(rounded, exact, rtol=0.03)
    assert meter.definitions["lpips"].endswith("; convolutions in bfloat16")
