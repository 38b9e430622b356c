"""The one door to all methods: how it cuts its work."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pipeline.inversion import StopRule, step_measures
from pipeline.inversion.methods import Method, Models, find_codes, found_its_end
from pipeline.models import RestyleModel, load_checkpoint
from tests.models.tiny import tiny_checkpoint

FACES, BATCH = 6, 2


@pytest.fixture
def model() -> RestyleModel:
    return load_checkpoint(tiny_checkpoint("ResNetBackboneEncoder"))


def faces(model: RestyleModel) -> Tensor:
    torch.manual_seed(3)
    return torch.rand(FACES, 3, *model.input_size) * 2 - 1


def seen_at_once(model: RestyleModel, found: list[int]) -> None:
    """Note how many faces each pass of `model` encodes."""

    def note(_: nn.Module, inputs: tuple[Tensor]) -> None:
        found.append(len(inputs[0]))

    model.encoder.register_forward_pre_hook(note)


def test_the_model_that_begins_sees_a_batch_at_a_time(model: RestyleModel) -> None:
    """An adaptive stop takes many batches together; they would not fit on a GPU at once."""
    first = load_checkpoint(tiny_checkpoint("ResNetProgressiveBackboneEncoder"))
    counts: list[int] = []
    seen_at_once(first, counts)
    method = Method(stop=StopRule(gain=0.0, most=2), bootstrap_steps=1)
    names = [str(n) for n in range(FACES)]
    found = find_codes(method, Models(model, first), faces(model), names, batch_size=BATCH)
    assert counts == [BATCH] * (FACES // BATCH)
    whole = find_codes(method, Models(model, first), faces(model), names, batch_size=FACES)
    assert torch.allclose(found.w_plus, whole.w_plus, atol=1e-5)
    assert torch.equal(found.generator_passes, whole.generator_passes)


def test_what_ended_a_loop_is_not_computed_again(model: RestyleModel) -> None:
    """A gain just below its bound may be just above it in a batch of another size."""
    images, names = faces(model), [str(n) for n in range(FACES)]
    method = Method(stop=StopRule(gain=-4.0, most=3))
    never = find_codes(method, Models(model), images, names, batch_size=BATCH)
    assert found_its_end(never, images, method) == [False] * FACES
    gains = step_measures(never, images).gain[:, 1]
    tight = float(gains[0].nextafter(torch.tensor(4.0)))
    method = Method(stop=StopRule(gain=tight, least=2, most=3))
    found = find_codes(method, Models(model), images, names, batch_size=BATCH)
    by_rule = found.steps_made < 3
    assert found.stopped is not None
    assert (found.stopped | ~by_rule).all()
    for rounded in (images * 0.999, images * 1.001):
        assert found_its_end(found, rounded, method) == found.stopped.tolist()
    assert found.of(torch.tensor([0])).stopped.tolist() == [bool(found.stopped[0])]


def test_another_models_start_is_rendered_without_gradients(model: RestyleModel) -> None:
    first = load_checkpoint(tiny_checkpoint("ResNetProgressiveBackboneEncoder"))
    kept: list[bool] = []
    first.generator.register_forward_hook(
        lambda _module, _inputs, image: kept.append(image.requires_grad)
    )
    start = model.latent_avg.expand(FACES, -1, -1)
    names = [str(n) for n in range(FACES)]
    how = {"batch_size": BATCH, "start": start}
    find_codes(Method(steps=1), Models(model, first), faces(model), names, **how)
    assert kept
    assert not any(kept)
