"""The bfloat16 twin of a model against the model: codes, images, and what it refuses."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pipeline.errors import ModelError
from pipeline.inversion import FastModel, StopRule, invert, invert_adaptively
from pipeline.models import RestyleModel, load_model


@pytest.fixture(scope="module")
def model() -> RestyleModel:
    """The demo model, whose weights are trained: an image is refined, not scattered."""
    return load_model("demo").requires_grad_(False)


def test_the_twin_inverts_within_its_bounds(model: RestyleModel) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        codes = model.latent_avg + 0.3 * torch.randn(4, 1, 512)
    with torch.no_grad():
        frames = model.frame(model.generator(codes)).clamp(-1, 1)
        images = F.adaptive_avg_pool2d(frames, model.input_size)
    exact, fast = (
        invert(each, images, steps=3, full_size=False) for each in (model, FastModel(model))
    )
    assert fast.w_plus.dtype == fast.step_images.dtype == torch.float32
    moved = (fast.w_plus - exact.w_plus).norm(dim=(2, 3)) / exact.w_plus.norm(dim=(2, 3))
    assert float(moved.median()) < 0.01
    assert float(moved.max()) < 0.05
    errors = [(each.step_images[:, -1] - images).square().mean() for each in (exact, fast)]
    assert float(errors[1] / errors[0]) == pytest.approx(1, abs=0.005)


def test_the_twin_in_float32_differs_by_rounding(model: RestyleModel) -> None:
    images = torch.rand(2, 3, *model.input_size) * 2 - 1
    exact, fast = (
        invert(each, images, steps=2) for each in (model, FastModel(model, torch.float32))
    )
    assert torch.allclose(fast.w_plus, exact.w_plus, rtol=0, atol=2e-5)
    assert torch.allclose(fast.step_images, exact.step_images, rtol=0, atol=1e-4)
    assert torch.allclose(fast.images, exact.images, rtol=0, atol=1e-4)


def test_the_twin_keeps_shapes_and_full_images(model: RestyleModel) -> None:
    images = torch.rand(2, 3, *model.input_size) * 2 - 1
    twin = FastModel(model)
    result = invert(twin, images, steps=2)
    pooled = invert(twin, images, steps=2, full_size=False)
    assert result.images.shape == (2, 3, *model.frame_size)
    assert torch.equal(pooled.images, pooled.step_images[:, -1])
    assert torch.allclose(result.w_plus, pooled.w_plus, atol=1e-3)
    rule = StopRule(improvement=-4.0, max_steps=2)
    adaptive = invert_adaptively(twin, images, rule, batch_size=1, full_size=False)
    assert torch.allclose(adaptive.w_plus, pooled.w_plus, atol=2e-2)


def test_the_twin_leaves_its_model_unchanged(model: RestyleModel) -> None:
    before = model.fingerprint
    twin = FastModel(model)
    assert model.fingerprint == before
    with pytest.raises(ModelError, match="take that of its model"):
        _ = twin.fingerprint
