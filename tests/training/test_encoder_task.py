import copy
from functools import partial

import pytest
import torch

from pipeline.inversion import invert
from pipeline.inversion.render import PIXELS_AT_ONCE
from pipeline.models import Architecture, RestyleModel, load_checkpoint
from pipeline.training.distributed import Group
from pipeline.training.e4e import Adversary, AdversaryPlan, Stages
from pipeline.training.encoder_task import (
    EncoderPlan,
    EncoderTask,
    Faces,
    average_start,
    model_start,
    refine,
    render,
)
from pipeline.training.losses import ImageWeights
from pipeline.training.trainer import TrainState
from tests.models.tiny import tiny_checkpoint

CHANNELS = {4: 8, 8: 8, 16: 8, 32: 8}
STATE = TrainState(batches=0, images=0, planned=100)


def tiny_model(input_channels: int = 6, *, starts_from_average: bool = True) -> RestyleModel:
    torch.manual_seed(3)
    arguments = {"n_styles": 8, "input_size": 32, "input_channels": input_channels, "width": 8}
    architecture = Architecture(
        "CompactEncoder",
        arguments,
        CHANNELS,
        input_size=(32, 32),
        starts_from_average=starts_from_average,
    )
    model = RestyleModel(architecture)
    model.latent_avg.normal_(0, 0.5)
    return model


@pytest.fixture
def model() -> RestyleModel:
    return tiny_model()


@pytest.fixture
def faces() -> Faces:
    images = torch.rand(4, 3, 32, 32) * 2 - 1
    return Faces(images, images)


def task_of(model, faces, **settings) -> EncoderTask:
    parts = {name: settings.pop(name) for name in ("start", "adversary") if name in settings}
    plan = EncoderPlan(images=ImageWeights(l2=1.0), **settings)
    return EncoderTask(model, plan, faces, **parts)


def test_gradients_reach_one_refinement_step_only(model, faces):
    start = average_start(model)(faces.input)
    first, second = refine(
        model.encoder, partial(render, model, model.input_size), start, faces.input, 2
    )
    first[1].sum().backward()
    alone = model.encoder.heads.bias.grad.clone()
    second[1].sum().backward()  # does not reach back into the first step
    assert not torch.equal(model.encoder.heads.bias.grad, alone)


def test_training_batch_leaves_the_generator_unchanged(model, faces):
    before = copy.deepcopy(model.generator.state_dict())
    losses = task_of(model, faces, steps=2).accumulate(faces, STATE)
    assert set(losses) == {"l2_first", "loss_first", "l2_last", "loss_last"}
    after = model.generator.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(weight.grad is None for weight in model.generator.parameters())


def test_refine_gives_the_same_steps_as_invert(model, faces):
    start = average_start(model)(faces.input)
    with torch.no_grad():
        rounds = list(
            refine(model.encoder, partial(render, model, model.input_size), start, faces.input, 3)
        )
    inversion = invert(model, faces.input, steps=3)
    for step, (codes, rendered) in enumerate(rounds):
        assert torch.allclose(inversion.w_plus[:, step], codes, atol=1e-4)
        assert torch.allclose(inversion.step_images[:, step], rendered, atol=1e-4)


@pytest.mark.parametrize("starts_from_average", [True, False])
def test_single_pass_training_matches_its_inversion(faces, starts_from_average):
    model = tiny_model(3, starts_from_average=starts_from_average)
    task = task_of(model, faces, steps=1)
    inverted = invert(model, faces.input, steps=1).step_images[:, 0]
    expected = (inverted - faces.input).square().mean()
    losses = task.accumulate(faces, STATE)
    assert losses["l2_last"].item() == pytest.approx(expected.item(), rel=1e-4)
    assert model.encoder.stem.weight.grad.abs().sum() > 0
    assert len(task.validate(model.encoder)["l2"]) == 1


def test_bootstrapping_starts_from_another_models_inversion(model, faces):
    codes, rendered = model_start(model, rows=6)(faces.input)
    inversion = invert(model, faces.input, steps=1)
    assert torch.equal(codes, inversion.w_plus[:, -1, :6])
    assert torch.equal(rendered, inversion.step_images[:, -1])


def test_code_terms_are_weighted_in_the_loss(model, faces):
    settings = {"steps": 1, "w_norm": 0.5, "delta_norm": 0.25}
    losses = task_of(model, faces, **settings).accumulate(faces, STATE)
    expected = losses["l2_last"] + 0.5 * losses["w_norm_last"] + 0.25 * losses["delta_norm_last"]
    assert torch.allclose(losses["loss_last"], expected)
    assert losses["delta_norm_last"] > 0


def test_first_stage_trains_only_the_first_row(model, faces):
    model.latent_avg.copy_(model.latent_avg[:1].expand(8, -1).clone())
    stages = Stages(start=1_000, every=1_000)
    task = task_of(model, faces, steps=1, stages=stages, delta_norm=1.0)
    losses = task.accumulate(faces, STATE)
    gradient = model.encoder.heads.bias.grad
    assert gradient[0].abs().sum() > 0
    assert gradient[1:].abs().sum() == 0
    assert losses["delta_norm_last"] == 0


def test_later_e4e_heads_have_no_gradient():
    model = load_checkpoint(tiny_checkpoint("ProgressiveBackboneEncoder"))
    images = torch.rand(2, 3, 256, 256) * 2 - 1
    task = task_of(model, Faces(images, images), steps=1, stages=Stages(start=10, every=10))
    for done, started in ((0, 1), (10, 2), (20, 3), (99, 4)):
        model.encoder.zero_grad()
        task.accumulate(Faces(images, images), TrainState(batches=0, images=done, planned=100))
        learning = [head.linear.weight.grad is not None for head in model.encoder.styles]
        assert learning == [True] * started + [False] * (4 - started)
    assert task.late == list(model.encoder.styles)[1:]


def test_discriminator_steps_and_is_in_the_checkpoint(model, faces):
    adversary = Adversary(AdversaryPlan(), lambda n: torch.randn(n, 512))
    task = task_of(model, faces, steps=1, adversary=adversary)
    before = copy.deepcopy(adversary.network.state_dict())
    assert "realness_last" in task.accumulate(faces, STATE)
    assert "discriminator" in task.after_step(STATE, Group())
    after = task.state()["discriminator"]
    assert any(not torch.equal(value, after[name]) for name, value in before.items())


def test_validation_reports_metrics_for_each_step(model, faces):
    task = task_of(model, faces, steps=3)
    validation = task.validate(model.encoder)
    with torch.no_grad():
        rendered = invert(model, faces.input, steps=3).step_images.clamp(-1, 1)
    expected = (rendered - faces.input[:, None]).square().mean(dim=(0, 2, 3, 4))
    assert validation["l2"] == pytest.approx(expected.tolist(), abs=1e-4)
    assert len(validation["lpips"]) == 3
    assert task.score(validation) == validation["lpips"][-1]
    assert task.pictures(model.encoder).shape == (4, 5, 3, 32, 32)


def test_validation_renders_in_the_chunks_of_inversion(model, faces, monkeypatch):
    task, at_once = task_of(model, faces, steps=2), []
    whole = task.validate(model.encoder)
    model.generator.register_forward_hook(lambda _, codes, __: at_once.append(len(codes[0])))
    monkeypatch.setitem(PIXELS_AT_ONCE, "cpu", 3 * 32 * 32)
    assert task.validate(model.encoder)["l2"] == pytest.approx(whole["l2"], abs=1e-4)
    assert at_once == [3, 1, 3, 1]
    task.pictures(model.encoder)
    assert max(at_once) == 3
