"""Adaptive steps: who stops when, and that nobody's result is a neighbour's business."""

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
    stopping_step,
)
from pipeline.models import RestyleModel, load_checkpoint, load_model
from tests.models.tiny import portrait, tiny_checkpoint

NEVER = StopRule(gain=float("-inf"), most=4)


@pytest.fixture(scope="module")
def model(tiny_bundle: str) -> RestyleModel:
    """A seeded model of 64 px whose steps differ from face to face."""
    model = load_model(tiny_bundle)
    with torch.no_grad():
        for weight in model.encoder.parameters():
            weight.mul_(1.5)
    return model


@pytest.fixture(scope="module")
def faces() -> Tensor:
    """Seven different targets, [7, 3, 64, 64]."""
    turned = [portrait(64, 64).roll(9 * k, dims=3) * (1 - 0.1 * k) for k in range(7)]
    return torch.cat(turned)


@pytest.fixture(scope="module")
def rule(model: RestyleModel, faces: Tensor) -> StopRule:
    """A bound that lets these faces stop at different steps."""
    gains = stopping_gains(model, faces).flatten().sort().values
    middle = gains[len(gains) // 4 : -(len(gains) // 4)]
    # In the widest gap: batches of another size, and other processors, round a gain otherwise.
    gap = int(middle.diff().argmax())
    return StopRule(gain=float(middle[gap : gap + 2].mean()), residual=float("inf"), most=6)


def stopping_gains(model: RestyleModel, faces: Tensor) -> Tensor:
    """The gains of six steps, [n, 6]."""
    return step_measures(invert(model, faces, steps=6), faces).gain


def test_faces_stop_where_the_rule_says(model: RestyleModel, faces: Tensor, rule: StopRule) -> None:
    every = invert(model, faces, steps=rule.most)
    expected = stopping_step(every, faces, rule)
    assert len(expected.unique()) > 1
    found = invert_adaptively(model, faces, rule, batch_size=3)
    assert torch.equal(found.steps_made, expected)
    assert torch.equal(found.generator_passes, expected)
    assert torch.equal(converged(found, faces, rule), converged(every, faces, rule))
    for face, made in enumerate(expected.tolist()):
        assert torch.allclose(found.w_plus[face, :made], every.w_plus[face, :made], atol=1e-5)


def test_a_face_that_stopped_repeats_its_last_step(
    model: RestyleModel, faces: Tensor, rule: StopRule
) -> None:
    found = invert_adaptively(model, faces, rule, batch_size=4)
    for face, made in enumerate(found.steps_made.tolist()):
        for step in range(made, found.steps):
            assert torch.equal(found.w_plus[face, step], found.w_plus[face, made - 1])
            assert torch.equal(found.step_images[face, step], found.step_images[face, made - 1])
    shown = model.generator(found.w_plus[:, -1])
    assert torch.allclose(found.images, shown, atol=1e-5)
    assert found.steps == int(found.steps_made.max())


@pytest.mark.parametrize("batch_size", [1, 2, 7, 20])
def test_neighbours_order_and_batch_size_change_nothing(
    model: RestyleModel, faces: Tensor, rule: StopRule, batch_size: int
) -> None:
    expected = invert_adaptively(model, faces, rule, batch_size=3)
    order = torch.tensor([4, 1, 6, 0, 3, 5, 2])
    found = invert_adaptively(model, faces[order], rule, batch_size=batch_size)
    assert torch.equal(found.steps_made, expected.steps_made[order])
    assert torch.allclose(found.w_plus, expected.w_plus[order], atol=1e-5)


def test_a_rule_that_never_holds_is_the_plain_loop(model: RestyleModel, faces: Tensor) -> None:
    found = invert_adaptively(model, faces, NEVER, batch_size=7)
    plain = invert(model, faces, steps=4)
    assert torch.equal(found.w_plus, plain.w_plus)
    assert torch.equal(found.images, plain.images)
    assert not converged(found, faces, NEVER).any()
    assert plain.steps_made.tolist() == [4] * 7


def test_the_residual_can_keep_a_face_going(model: RestyleModel, faces: Tensor) -> None:
    settled = StopRule(gain=float("inf"), residual=1e-9, most=3)
    assert invert_adaptively(model, faces, settled, batch_size=7).steps_made.tolist() == [3] * 7
    content = StopRule(gain=float("inf"), residual=float("inf"), least=2, most=3)
    assert invert_adaptively(model, faces, content, batch_size=7).steps_made.tolist() == [2] * 7


def test_a_face_that_is_not_finite_leaves_and_harms_nobody(
    model: RestyleModel, faces: Tensor, rule: StopRule
) -> None:
    broken = faces.clone()
    broken[2, 0, 5, 5] = float("nan")
    found = invert_adaptively(model, broken, rule, batch_size=3)
    whole = invert_adaptively(model, faces, rule, batch_size=3)
    others = torch.arange(7) != 2
    assert torch.equal(found.finite, others)
    assert found.steps_made[2] == 1
    assert torch.equal(found.steps_made[others], whole.steps_made[others])
    assert not converged(found, broken, rule)[2]


def test_full_size_images_can_be_left_out(model: RestyleModel, faces: Tensor) -> None:
    found = invert_adaptively(model, faces, NEVER, batch_size=7, full_size=False)
    assert torch.equal(found.images, found.step_images[:, -1])


def test_a_start_is_rendered_once_and_counted(model: RestyleModel, faces: Tensor) -> None:
    begun = invert(model, faces, steps=2)
    more = {"start": begun.w_plus[:, 0]}
    found = invert_adaptively(model, faces, StopRule(gain=-9, most=1), batch_size=7, **more)
    assert torch.allclose(found.w_plus[:, 0], begun.w_plus[:, 1], atol=1e-5)
    assert found.generator_passes.tolist() == [2] * 7
    seen = {"start_images": begun.step_images[:, 0]}
    cheap = invert_adaptively(model, faces, StopRule(gain=-9, most=1), batch_size=7, **more, **seen)
    assert cheap.generator_passes.tolist() == [1] * 7


def test_some_faces_of_an_inversion_have_their_own_steps_alone(
    model: RestyleModel, faces: Tensor, rule: StopRule
) -> None:
    found = invert_adaptively(model, faces, rule, batch_size=3)
    fewest = (found.steps_made == found.steps_made.min()).nonzero()[:, 0]
    few = found.of(fewest)
    assert few.steps == int(found.steps_made.min()) < found.steps
    assert torch.equal(few.w_plus[:, -1], found.w_plus[fewest, -1])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"least": 3, "most": 2}, "least 3, most 2"),
        ({"least": 0}, "least 0"),
        ({"gain": float("nan")}, "number as gain"),
        ({"residual": 0.0}, "residual above 0"),
    ],
)
def test_rules_that_cannot_be_followed_are_refused(wrong: dict[str, float], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        StopRule(**wrong)  # type: ignore[arg-type]


def test_other_targets_are_refused(model: RestyleModel, faces: Tensor) -> None:
    found = invert(model, faces, steps=1)
    with pytest.raises(ShapeError, match=r"got \[3, 3, 64, 64\], expected \[7, 3, 64, 64\]"):
        converged(found, faces[:3], NEVER)


def test_a_one_pass_encoder_does_not_adapt() -> None:
    model = load_checkpoint(tiny_checkpoint("ResNetBackboneEncoder", input_channels=3))
    with pytest.raises(ConfigError, match="one-pass encoder"):
        invert_adaptively(model, portrait(), StopRule(), batch_size=1)


def test_no_batch_is_refused(model: RestyleModel, faces: Tensor) -> None:
    with pytest.raises(ConfigError, match="batch_size is 0"):
        invert_adaptively(model, faces, NEVER, batch_size=0)
