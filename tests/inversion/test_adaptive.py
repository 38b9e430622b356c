"""Adaptive steps: when a face stops, and that no face affects another."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipeline.errors import ConfigError, ShapeError
from pipeline.inversion import (
    StopRule,
    converged,
    invert,
    invert_adaptively,
    step_measures,
    step_of,
)
from pipeline.models import RestyleModel, load_checkpoint, load_model
from tests.models.tiny import portrait, tiny_checkpoint

NEVER = StopRule(improvement=float("-inf"), max_steps=4)


@pytest.fixture(scope="module")
def model(tiny_bundle: str) -> RestyleModel:
    """Seeded model of 64 px whose faces need different numbers of steps."""
    model = load_model(tiny_bundle)
    with torch.no_grad():
        for weight in model.encoder.parameters():
            weight.mul_(1.5)
    return model


@pytest.fixture(scope="module")
def faces() -> Tensor:
    """Seven different targets, [7, 3, 64, 64]."""
    shifted = [portrait(64, 64).roll(9 * k, dims=3) * (1 - 0.1 * k) for k in range(7)]
    return torch.cat(shifted)


@pytest.fixture(scope="module")
def rule(model: RestyleModel, faces: Tensor) -> StopRule:
    """Rule that stops these faces at different steps."""
    values = improvements(model, faces).flatten().sort().values
    middle = values[len(values) // 4 : -(len(values) // 4)]
    # In the widest gap: other batch sizes and processors round an improvement differently.
    gap = int(middle.diff().argmax())
    bound = float(middle[gap : gap + 2].mean())
    return StopRule(improvement=bound, residual=float("inf"), max_steps=6)


def improvements(model: RestyleModel, faces: Tensor) -> Tensor:
    """Return the improvements of six steps, [n, 6]."""
    return step_measures(invert(model, faces, steps=6), faces).improvement


def test_faces_stop_where_the_rule_says(model: RestyleModel, faces: Tensor, rule: StopRule) -> None:
    full = invert(model, faces, steps=rule.max_steps)
    expected = step_of(step_measures(full, faces), rule)
    assert len(expected.unique()) > 1
    result = invert_adaptively(model, faces, rule, batch_size=3)
    assert torch.equal(result.steps_made, expected)
    assert torch.equal(result.generator_passes, expected)
    assert torch.equal(converged(result, faces, rule), converged(full, faces, rule))
    for face, steps in enumerate(expected.tolist()):
        assert torch.allclose(result.w_plus[face, :steps], full.w_plus[face, :steps], atol=1e-5)


def test_a_stopped_face_repeats_its_last_step(
    model: RestyleModel, faces: Tensor, rule: StopRule
) -> None:
    result = invert_adaptively(model, faces, rule, batch_size=4)
    for face, steps in enumerate(result.steps_made.tolist()):
        for step in range(steps, result.steps):
            assert torch.equal(result.w_plus[face, step], result.w_plus[face, steps - 1])
            assert torch.equal(result.step_images[face, step], result.step_images[face, steps - 1])
    rendered = model.generator(result.w_plus[:, -1])
    assert torch.allclose(result.images, rendered, atol=1e-5)
    assert result.steps == int(result.steps_made.max())


@pytest.mark.parametrize("batch_size", [1, 2, 7, 20])
def test_order_and_batch_size_change_no_result(
    model: RestyleModel, faces: Tensor, rule: StopRule, batch_size: int
) -> None:
    expected = invert_adaptively(model, faces, rule, batch_size=3)
    order = torch.tensor([4, 1, 6, 0, 3, 5, 2])
    result = invert_adaptively(model, faces[order], rule, batch_size=batch_size)
    assert torch.equal(result.steps_made, expected.steps_made[order])
    assert torch.allclose(result.w_plus, expected.w_plus[order], atol=1e-5)


def test_a_rule_without_a_stop_equals_invert(model: RestyleModel, faces: Tensor) -> None:
    result = invert_adaptively(model, faces, NEVER, batch_size=7)
    plain = invert(model, faces, steps=4)
    assert torch.equal(result.w_plus, plain.w_plus)
    assert torch.equal(result.images, plain.images)
    assert not converged(result, faces, NEVER).any()
    assert plain.steps_made.tolist() == [4] * 7


def test_both_measures_must_be_below_their_bounds(model: RestyleModel, faces: Tensor) -> None:
    strict = StopRule(improvement=float("inf"), residual=1e-9, max_steps=3)
    assert invert_adaptively(model, faces, strict, batch_size=7).steps_made.tolist() == [3] * 7
    loose = StopRule(improvement=float("inf"), residual=float("inf"), min_steps=2, max_steps=3)
    assert invert_adaptively(model, faces, loose, batch_size=7).steps_made.tolist() == [2] * 7


def test_a_non_finite_face_affects_no_other(
    model: RestyleModel, faces: Tensor, rule: StopRule
) -> None:
    broken = faces.clone()
    broken[2, 0, 5, 5] = float("nan")
    result = invert_adaptively(model, broken, rule, batch_size=3)
    expected = invert_adaptively(model, faces, rule, batch_size=3)
    others = torch.arange(7) != 2
    assert torch.equal(result.finite, others)
    assert result.steps_made[2] == 1
    assert torch.equal(result.steps_made[others], expected.steps_made[others])
    assert not converged(result, broken, rule)[2]


def test_full_size_images_can_be_left_out(model: RestyleModel, faces: Tensor) -> None:
    result = invert_adaptively(model, faces, NEVER, batch_size=7, full_size=False)
    assert torch.equal(result.images, result.step_images[:, -1])


def test_a_start_is_rendered_once_and_counted(model: RestyleModel, faces: Tensor) -> None:
    first = invert(model, faces, steps=2)
    once = StopRule(improvement=-9, max_steps=1)
    start = first.w_plus[:, 0]
    result = invert_adaptively(model, faces, once, batch_size=7, start=start)
    assert torch.allclose(result.w_plus[:, 0], first.w_plus[:, 1], atol=1e-5)
    assert result.generator_passes.tolist() == [2] * 7
    images = first.step_images[:, 0]
    given = invert_adaptively(model, faces, once, batch_size=7, start=start, start_images=images)
    assert given.generator_passes.tolist() == [1] * 7


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_steps": 3, "max_steps": 2}, "min_steps 3, max_steps 2"),
        ({"min_steps": 0}, "min_steps 0"),
        ({"improvement": float("nan")}, "number as improvement"),
        ({"residual": 0.0}, "residual above 0"),
    ],
)
def test_invalid_stop_rules_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        StopRule(**settings)  # type: ignore[arg-type]


def test_other_targets_are_refused(model: RestyleModel, faces: Tensor) -> None:
    result = invert(model, faces, steps=1)
    with pytest.raises(ShapeError, match=r"got \[3, 3, 64, 64\], expected \[7, 3, 64, 64\]"):
        converged(result, faces[:3], NEVER)


def test_one_pass_encoders_make_no_adaptive_steps() -> None:
    model = load_checkpoint(tiny_checkpoint("ResNetBackboneEncoder", input_channels=3))
    with pytest.raises(ConfigError, match="one-pass encoder"):
        invert_adaptively(model, portrait(), StopRule(), batch_size=1)


def test_an_empty_batch_is_refused(model: RestyleModel, faces: Tensor) -> None:
    with pytest.raises(ConfigError, match="batch_size is 0"):
        invert_adaptively(model, faces, NEVER, batch_size=0)
