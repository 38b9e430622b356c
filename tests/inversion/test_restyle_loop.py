"""ReStyle loop: arithmetic, frames, initial codes, and invalid arguments."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.errors import ConfigError, ShapeError
from pipeline.inversion import average_image, invert
from pipeline.inversion.methods import Method, Models, find_codes
from pipeline.inversion.optimize import latent_spread
from pipeline.models import RestyleModel, load_checkpoint
from tests.models.float64_reference import restyle
from tests.models.tiny import filled, portrait, tiny_checkpoint

GOLDEN = Path(__file__).parent / "golden"
TYPES = ("BackboneEncoder", "ResNetProgressiveBackboneEncoder", "GradualStyleEncoder")


@pytest.fixture(scope="module")
def model() -> RestyleModel:
    """Tiny ReStyle model with the smaller encoder."""
    return load_checkpoint(tiny_checkpoint("ResNetBackboneEncoder"))


@pytest.fixture(scope="module")
def faces() -> Tensor:
    """Two different targets, [2, 3, 256, 256]."""
    return torch.cat([portrait(), portrait().flip(3)])


@pytest.mark.parametrize("encoder_type", TYPES)
def test_codes_equal_the_float64_loop(encoder_type: str) -> None:
    expected = np.load(GOLDEN / f"{encoder_type}.npy", allow_pickle=False)
    single_pass = encoder_type == "GradualStyleEncoder"
    checkpoint = tiny_checkpoint(encoder_type, input_channels=3 if single_pass else 6)
    result = invert(load_checkpoint(checkpoint), portrait(), steps=expected.shape[1])
    assert np.abs(result.w_plus.numpy() - expected).max() < 1e-5 * np.abs(expected).max()


def test_golden_codes_equal_the_reference() -> None:
    checkpoint = tiny_checkpoint("BackboneEncoder")
    codes, images = restyle(checkpoint, "BackboneEncoder", portrait(), steps=1)
    golden = np.load(GOLDEN / "BackboneEncoder.npy", allow_pickle=False)
    assert np.abs(codes - golden[:, :1]).max() < 1e-6
    result = invert(load_checkpoint(checkpoint), portrait(), steps=1)
    assert (result.images - images).abs().max() < 1e-5 * images.abs().max()


def test_each_step_adds_the_encoders_residual(model: RestyleModel, faces: Tensor) -> None:
    result = invert(model, faces, steps=2)
    with torch.no_grad():
        inputs = torch.cat([faces, result.step_images[:, 0]], dim=1)
        second = result.w_plus[:, 0] + model.encoder(inputs)
    assert torch.allclose(result.w_plus[:, 1], second, atol=1e-5)


def test_shapes_are_as_documented(model: RestyleModel, faces: Tensor) -> None:
    result = invert(model, faces, steps=2)
    assert result.w_plus.shape == (2, 2, 4, 512)
    assert result.images.shape == (2, 3, 8, 8)
    assert result.step_images.shape == (2, 2, 3, 256, 256)
    assert result.steps == 2
    assert result.finite.tolist() == [True, True]
    assert not result.w_plus.requires_grad


def test_step_images_are_pooled_renders(model: RestyleModel, faces: Tensor) -> None:
    result = invert(model, faces, steps=1)
    rendered = model.generator.reference(result.w_plus[:, 0])
    assert torch.allclose(result.images, rendered, atol=1e-5)
    assert torch.allclose(result.step_images[:, 0], F.interpolate(rendered, 256), atol=1e-5)


def test_a_face_does_not_depend_on_its_neighbours(model: RestyleModel, faces: Tensor) -> None:
    together = invert(model, faces, steps=2)
    alone = invert(model, faces[1:], steps=2)
    assert torch.allclose(together.w_plus[1:], alone.w_plus, atol=1e-5)


def test_a_non_finite_input_affects_no_other(model: RestyleModel, faces: Tensor) -> None:
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
    for loads_inside in (False, True):
        with torch.inference_mode(loads_inside):
            # A copy: the checkpoint's own tensors were made outside of inference mode.
            model = copy.deepcopy(load_checkpoint(tiny_checkpoint("ResNetBackboneEncoder")))
        with torch.inference_mode():
            result = invert(model, faces, steps=2)
        assert torch.equal(result.w_plus, expected.w_plus)
        assert latent_spread(model) > 0


def test_average_images_of_inference_mode_allow_training() -> None:
    model = load_checkpoint(tiny_checkpoint("ResNetBackboneEncoder"))
    with torch.inference_mode():
        average_image(model)
    factor = torch.ones(1, requires_grad=True)
    (factor * average_image(model)).sum().backward()
    assert factor.grad is not None


def test_cars_keep_their_frame() -> None:
    options = {"dataset_type": "cars_encode"}
    model = load_checkpoint(tiny_checkpoint("ResNetBackboneEncoder", **options))
    result = invert(model, portrait(192, 256), steps=1)
    rendered = model.generator.reference(result.w_plus[:, 0])
    assert result.images.shape == (1, 3, 6, 8)
    assert torch.allclose(result.images, rendered[:, :, 1:7], atol=1e-5)
    assert result.step_images.shape == (1, 1, 3, 192, 256)


def test_a_start_replaces_the_average(model: RestyleModel) -> None:
    first = invert(model, portrait(), steps=2)
    again = invert(model, portrait(), steps=1, start=first.w_plus[:, 0])
    assert torch.allclose(again.w_plus[:, 0], first.w_plus[:, 1], atol=1e-5)
    assert torch.equal(again.start, first.w_plus[:, 0])


def test_bootstrapping_continues_from_the_first_result(model: RestyleModel) -> None:
    cartoon = load_checkpoint(tiny_checkpoint("ResNetProgressiveBackboneEncoder"))
    method, models = Method(steps=1, bootstrap_steps=1), Models(cartoon, first=model)
    second = find_codes(method, models, portrait(), ["a.jpg"], batch_size=1)
    first = invert(model, portrait(), steps=1)
    with torch.no_grad():
        offsets = cartoon.encoder(torch.cat([portrait(), first.step_images[:, 0]], dim=1))
    assert torch.allclose(second.w_plus[:, 0], first.w_plus[:, 0] + offsets, atol=1e-5)
    assert second.generator_passes.tolist() == [2]


def test_one_pass_encoders_may_add_to_the_average() -> None:
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
def test_steps_must_be_whole_numbers(model: RestyleModel, steps: object) -> None:
    with pytest.raises(ConfigError, match=r"expected a whole number of 1 or more") as error:
        invert(model, portrait(), steps=steps)  # type: ignore[arg-type]
    assert ("invert_adaptively" in str(error.value)) == (steps == "auto")


def test_images_must_be_tensors(model: RestyleModel) -> None:
    message = r"images: got a ndarray, expected a torch\.Tensor, float32 \[n, 3, 256, 256\]"
    with pytest.raises(ShapeError, match=message):
        invert(model, portrait().numpy())  # type: ignore[arg-type]


def test_zero_steps_are_refused(model: RestyleModel) -> None:
    with pytest.raises(ConfigError, match="steps is 0"):
        invert(model, portrait(), steps=0)


@pytest.mark.parametrize(
    ("images", "message"),
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
def test_images_of_another_shape_are_refused(
    model: RestyleModel, images: Tensor, message: str
) -> None:
    with pytest.raises(ShapeError, match=message):
        invert(model, images)


def test_a_start_of_another_shape_is_refused(model: RestyleModel) -> None:
    with pytest.raises(ShapeError, match=r"start: got float32 \[1, 9, 512\]"):
        invert(model, portrait(), start=filled("codes", (1, 9, 512)))
