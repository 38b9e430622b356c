import copy

import pytest
import torch

from pipeline.inversion import invert
from pipeline.models.compact import CompactEncoder
from pipeline.models.stylegan2 import Generator
from pipeline.training.demo import assemble
from pipeline.training.encoder import (
    EncoderPlan,
    Start,
    evaluate_encoder,
    refine,
    scale_output,
    train_batch,
    train_encoder,
)
from pipeline.training.generator import GeneratorPlan, repeat_rows
from pipeline.training.pairs import to_unit

CHANNELS = {4: 8, 8: 8, 16: 8, 32: 8}
PLAN = EncoderPlan(images=96, batch=8, steps=3, early_steps=2, held_out=8, report_every=48)


@pytest.fixture
def generator() -> Generator:
    torch.manual_seed(3)
    return Generator(CHANNELS).requires_grad_(False)


@pytest.fixture
def encoder() -> CompactEncoder:
    torch.manual_seed(4)
    return CompactEncoder(n_styles=8, input_size=32, width=8)


def test_each_step_has_a_gradient_of_its_own(generator, encoder):
    start = Start.of(generator, torch.zeros(8, 512))
    target = torch.rand(2, 3, 32, 32) * 2 - 1
    first, second = refine(encoder, generator, start, target, 2, 1.0)
    first.sum().backward()
    alone = encoder.heads.bias.grad.clone()
    second.sum().backward()  # does not reach back into the first step
    assert not torch.equal(encoder.heads.bias.grad, alone)


def test_a_batch_leaves_the_generator_as_it_was(generator, encoder):
    before = copy.deepcopy(generator.state_dict())
    start = Start.of(generator, torch.zeros(8, 512))
    losses = train_batch(
        encoder, generator, start, torch.zeros(2, 3, 32, 32), PLAN, spread=1.0, steps=2
    )
    assert set(losses) == {"l2_first", "lpips_first", "l2_last", "lpips_last"}
    assert all(torch.equal(value, generator.state_dict()[name]) for name, value in before.items())


def test_training_brings_the_distance_to_unseen_images_down(generator, colours, tmp_path):
    latent_avg = repeat_rows(colours.w.mean(dim=0)[None], 8)[0]
    images = colours.images[-PLAN.held_out :]
    trained = train_encoder(PLAN, generator, latent_avg, colours, tmp_path)
    start = Start.of(generator, latent_avg)
    untrained = (to_unit(images) - start.image).square().mean()
    after = evaluate_encoder(trained, generator, start, images, PLAN.steps, spread=1.0)
    assert after["l2"][-1] < 0.9 * float(untrained)


def test_the_assembled_model_inverts_as_the_training_loop_refines(generator, encoder):
    scale_output(encoder, 0.5)
    latent_avg = torch.randn(8, 512)
    model = assemble(GeneratorPlan(channels=CHANNELS), generator, encoder, latent_avg, {})
    target = torch.rand(3, 3, 32, 32) * 2 - 1
    start = Start.of(generator, latent_avg)
    with torch.no_grad():
        expected = list(refine(encoder, generator, start, target, 3, spread=1.0))
    assert torch.allclose(invert(model, target, steps=3).images, expected[-1], atol=1e-4)
    assert "research" in model.licence
