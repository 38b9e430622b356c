"""The loop: its arithmetic, its frames, its starts, and what it refuses."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.errors import ConfigError, ShapeError
from pipeline.inversion import average_image, bootstrap, invert
from pipeline.inversion.optimize import latent_spread
from pipeline.models import RestyleModel, load_checkpoint
from tests.models.float64_reference import restyle
from tests.models.tiny import filled, portrait, tiny_checkpoint

GOLDEN = Path(__file__).parent / "golden"
TYPES = ("BackboneEncoder", "ResNetProgressiveBackboneEncoder", "GradualStyleEncoder")


@pytest.fixture(scope="module")
def model() -> RestyleModel:
    """A tiny ReStyle model with the smaller body."""
    return load_checkpoint(tiny_checkpoint("ResNetBackboneEncoder"))


@pytest.fixture(scope="module")
def faces() -> Tensor:
    """Two different targets, [2, 3, 256, 256]."""
    return torch.cat([portrait(), portrait().flip(3)])


@pytest.mark.parametrize("encoder_type", TYPES)
def test_codes_are_those_of_the_float64_loop(encoder_type: str) -> None:
    expected = np.load(GOLDEN / f"{encoder_type}.npy", allow_pickle=False)
    one_pass = encoder_type == "GradualStyleEncoder"
    checkpoint = tiny_checkpoint(encoder_type, input_channels=3 if one_pass else 6)
    found = invert(load_checkpoint(checkpoint), portrait(), steps=expected.shape[1])
    assert np.abs(found.w_plus.numpy() - expected).max() < 1e-5 * np.abs(expected).max()


def test_the_golden_codes_are_what_the_reference_computes() -> None:
    checkpoint = tiny_checkpoint("BackboneEncoder")
    codes, images = restyle(checkpoint, "BackboneEncoder", portrait(), steps=1)
    golden = np.load(GOLDEN / "BackboneEncoder.npy", allow_pickle=False)
    assert np.abs(codes - golden[:, :1]).max() < 1e-6
    found = invert(load_checkpoint(checkpoint), portrait(), steps=1)
    assert (found.images - images).abs().max() < 1e-5 * images.abs().max()


def test_every_step_adds_what_the_encoder_says(model: RestyleModel, faces: Tensor) -> None:
    found = invert(model, faces, steps=2)
    with torch.no_grad():
        shown = torch.cat([faces, found.step_images[:, 0]], dim=1)
        second = found.w_plus[:, 0] + model.encoder(shown)
    assert torch.allclose(found.w_plus[:, 1], second, atol=1e-5)
    assert torch.allclose(found.residuals.sum(1), found.w_plus[:, -1] - model.latent_avg, atol=1e-5)


def test_shapes_are_as_documented(model: RestyleModel, faces: Tensor) -> None:
    found = invert(model, faces, steps=2)
    assert found.w_plus.shape == (2, 2, 4, 512)
    assert found.images.shape == (2, 3, 8, 8)
    assert found.step_images.shape == (2, 2, 3, 256, 256)
    assert found.steps == 2
    assert found.finite.tolist() == [True, True]
    assert not found.w_plus.requires_grad


def test_step_images_are_the_generators_pooled(model: RestyleModel, faces: Tensor) -> None:
    found = invert(model, faces, steps=1)
    made = model.generator.reference(found.w_plus[:, 0])
    assert torch.allclose(found.images, made, atol=1e-5)
    assert torch.allclose(found.step_images[:, 0], F.interpolate(made, 256), atol=1e-5)


def test_a_face_does_not_depend_on_its_neighbours(model: RestyleModel, faces: Tensor) -> None:
    together = invert(model, faces, steps=2)
    alone = invert(model, faces[1:], steps=2)
    assert torch.allclose(together.w_plus[1:], alone.w_plus, atol=1e-5)


def test_not_finite_input_marks_its_own_face_only(model: RestyleModel, faces: Tensor) -> None:
    faces = faces.clone()
    faces[0, 0, 0, 0] = float("nan")
    assert invert(model, faces, steps=1).finite.tolist() == [False, True]


def test_the_average_image_follows_the_weights() -> None:
    model = load_checkpoint(tiny_checkpoint("ResNetBackboneEncoder"))
    before = average_image(model)
    assert average_image(model) is before
    with torch.no_grad():
        model.latent_avg = model.latent_avg.clone()
        model.latent_avg += 1.0
    assert not torch.allclose(average_image(model), before)


def test_inference_mode_changes_no_result(faces: Tensor) -> None:
    expected = invert(load_checkpoint(tiny_checkpoint("ResNetBackboneEncoder")), faces, steps=2)
    for made_inside in (False, True):
        with torch.inference_mode(made_inside):
            # Not the dictionary's own tensors, which are made outside.
            model = copy.deepcopy(load_checkpoint(tiny_checkpoint("ResNetBackboneEncoder")))
        with torch.inference_mode():
            found = invert(model, faces, steps=2)
        assert torch.equal(found.w_plus, expected.w_plus)
        assert latent_spread(model) > 0


def test_an_average_image_first_asked_for_in_inference_mode_is_trained_with() -> None:
    model = load_checkpoint(tiny_checkpoint("ResNetBackboneEncoder"))
    with torch.inference_mode():
        average_image(model)
    factor = torch.ones(1, requires_grad=True)
    (factor * average_image(model)).sum().backward()
    assert factor.grad is not None


def test_cars_are_seen_in_their_frame() -> None:
    options = {"dataset_type": "cars_encode"}
    model = load_checkpoint(tiny_checkpoint("ResNetBackboneEncoder", **options))
    found = invert(model, portrait(192, 256), steps=1)
    made = model.generator.reference(found.w_plus[:, 0])
    assert found.images.shape == (1, 3, 6, 8)
    assert torch.allclose(found.images, made[:, :, 1:7], atol=1e-5)
    assert found.step_images.shape == (1, 1, 3, 192, 256)


def test_a_start_replaces_the_average(model: RestyleModel) -> None:
    first = invert(model, portrait(), steps=2)
    again = invert(model, portrait(), steps=1, start=first.w_plus[:, 0])
    assert torch.allclose(again.w_plus[:, 0], first.w_plus[:, 1], atol=1e-5)
    assert torch.equal(again.start, first.w_plus[:, 0])


def test_bootstrapping_shows_the_second_encoder_the_first_ones_result(model: RestyleModel) -> None:
    cartoon = load_checkpoint(tiny_checkpoint("ResNetProgressiveBackboneEncoder"))
    begun, done = bootstrap(model, cartoon, portrait(), steps=(1, 1))
    with torch.no_grad():
        offsets = cartoon.encoder(torch.cat([portrait(), begun.step_images[:, 0]], dim=1))
    assert torch.allclose(done.w_plus[:, 0], begun.w_plus[:, 0] + offsets, atol=1e-5)


def test_a_one_pass_encoder_adds_to_the_average_where_its_options_say_so() -> None:
    kind = {"encoder_type": "ResNetBackboneEncoder", "input_channels": 3}
    offset = load_checkpoint(tiny_checkpoint(**kind))
    plain = load_checkpoint(tiny_checkpoint(**kind, start_from_latent_avg=False))
    difference = (
        invert(offset, portrait(), steps=1).w_plus - invert(plain, portrait(), steps=1).w_plus
    )
    assert torch.allclose(difference[0, 0], offset.latent_avg, atol=1e-5)


def test_a_one_pass_encoder_makes_one_step() -> None:
    model = load_checkpoint(tiny_checkpoint("ResNetBackboneEncoder", input_channels=3))
    with pytest.raises(ConfigError, match=r"one-pass encoder.*steps must be 1, not 5"):
        invert(model, portrait())


@pytest.mark.parametrize("steps", ["auto", 2.0, None, True])
def test_steps_that_are_no_number_of_them_are_refused(model: RestyleModel, steps: object) -> None:
    with pytest.raises(ConfigError, match=r"expected a whole number from 1") as error:
        invert(model, portrait(), steps=steps)  # type: ignore[arg-type]
    assert ("invert_adaptively" in str(error.value)) == (steps == "auto")


def test_images_that_are_no_tensor_are_refused(model: RestyleModel) -> None:
    told = r"images: got a ndarray, expected a torch\.Tensor, float32 \[n, 3, 256, 256\]"
    with pytest.raises(ShapeError, match=told):
        invert(model, portrait().numpy())  # type: ignore[arg-type]


def test_no_step_is_refused(model: RestyleModel) -> None:
    with pytest.raises(ConfigError, match="steps is 0"):
        invert(model, portrait(), steps=0)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (
            torch.zeros(1, 3, 64, 64),
            r"got float32 \[1, 3, 64, 64\], expected float32 \[n, 3, 256, ",
        ),
        (torch.zeros(3, 256, 256), r"got float32 \[3, 256, 256\]"),
        (torch.zeros(0, 3, 256, 256), r"got float32 \[0, 3, 256, 256\]"),
        (torch.zeros(1, 3, 256, 256, dtype=torch.uint8), r"images: got uint8"),
    ],
)
def test_other_images_are_refused(model: RestyleModel, images: Tensor, said: str) -> None:
    with pytest.raises(ShapeError, match=said):
        invert(model, images)


def test_a_start_of_another_shape_is_refused(model: RestyleModel) -> None:
    with pytest.raises(ShapeError, match=r"start: got float32 \[1, 9, 512\]"):
        invert(model, portrait(), start=filled("codes", (1, 9, 512)))
