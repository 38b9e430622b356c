"""Batches of `find_codes`, and the convergence flags of its results."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pipeline.inversion import StopRule, step_measures
from pipeline.inversion.methods import Method, Models, convergence, find_codes
from pipeline.models import RestyleModel, load_checkpoint
from tests.models.tiny import tiny_checkpoint

FACES, BATCH = 6, 2


@pytest.fixture
def model() -> RestyleModel:
    return load_checkpoint(tiny_checkpoint("ResNetBackboneEncoder"))


def faces(model: RestyleModel) -> Tensor:
    torch.manual_seed(3)
    return torch.rand(FACES, 3, *model.input_size) * 2 - 1


def record_batches(model: RestyleModel, sizes: list[int]) -> None:
    """Append the number of faces of each encoder pass of `model` to `sizes`."""

    def record(_: nn.Module, inputs: tuple[Tensor]) -> None:
        sizes.append(len(inputs[0]))

    model.encoder.register_forward_pre_hook(record)


def test_bootstrap_encodes_one_batch_at_a_time(model: RestyleModel) -> None:
    """An adaptive stop gets many batches together, which do not fit on a GPU at once."""
    first = load_checkpoint(tiny_checkpoint("ResNetProgressiveBackboneEncoder"))
    sizes: list[int] = []
    record_batches(first, sizes)
    method = Method(stop=StopRule(improvement=0.0, max_steps=2), bootstrap_steps=1)
    names = [str(n) for n in range(FACES)]
    result = find_codes(method, Models(model, first), faces(model), names, batch_size=BATCH)
    assert sizes == [BATCH] * (FACES // BATCH)
    whole = find_codes(method, Models(model, first), faces(model), names, batch_size=FACES)
    assert torch.allclose(result.w_plus, whole.w_plus, atol=1e-5)
    assert torch.equal(result.generator_passes, whole.generator_passes)


def test_the_loops_own_decision_is_kept(model: RestyleModel) -> None:
    """An improvement just below its bound may be just above it in another batch size."""
    images, names = faces(model), [str(n) for n in range(FACES)]
    method = Method(stop=StopRule(improvement=-4.0, max_steps=3))
    never = find_codes(method, Models(model), images, names, batch_size=BATCH)
    assert not convergence(never, images, method).any()
    improvements = step_measures(never, images).improvement[:, 1]
    tight = float(improvements[0].nextafter(torch.tensor(4.0)))
    method = Method(stop=StopRule(improvement=tight, min_steps=2, max_steps=3))
    result = find_codes(method, Models(model), images, names, batch_size=BATCH)
    by_rule = result.steps_made < 3
    assert result.stopped is not None
    assert (result.stopped | ~by_rule).all()
    for rounded in (images * 0.999, images * 1.001):
        assert torch.equal(convergence(result, rounded, method), result.stopped)


def test_a_given_start_is_rendered_without_gradients(model: RestyleModel) -> None:
    first = load_checkpoint(tiny_checkpoint("ResNetProgressiveBackboneEncoder"))
    with_gradients: list[bool] = []
    first.generator.register_forward_hook(
        lambda _module, _inputs, image: with_gradients.append(image.requires_grad)
    )
    start = model.latent_avg.expand(FACES, -1, -1)
    names = [str(n) for n in range(FACES)]
    options = {"batch_size": BATCH, "start": start}
    find_codes(Method(steps=1), Models(model, first), faces(model), names, **options)
    assert with_gradients
    assert not any(with_gradients)
