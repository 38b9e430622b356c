import dataclasses

import torch

from pipeline.demo.generator_task import LatentScale, evaluate_generator, fit_generator, repeat_rows
from pipeline.models.stylegan2 import Generator
from pipeline.training.trainer import LoopPlan

CHANNELS = {4: 8, 8: 8, 16: 8, 32: 8}
HELD_OUT = 8
PLAN = LoopPlan(
    images=64, batch=8, max_lr=2e-2, warmup_steps=4, ema_window=4, report_every=64, save_every=64
)
IDENTITY = LatentScale(torch.zeros(512), 1.0)


def test_folded_scale_gives_the_same_images():
    torch.manual_seed(0)
    generator = Generator(CHANNELS)
    w = torch.randn(5, 512) * 0.3 + torch.randn(512)
    scale = LatentScale.of(w)
    with torch.no_grad():
        before = generator(repeat_rows(scale.normalise(w), generator.n_styles))
        scale.fold_into(generator)
        after = generator(repeat_rows(w, generator.n_styles))
        scale.inverse.fold_into(generator)
        again = generator(repeat_rows(scale.normalise(w), generator.n_styles))
    assert torch.allclose(before, after, atol=1e-4)
    assert torch.allclose(before, again, atol=1e-4)


def test_fitting_lowers_the_distance_to_pairs(colours, tmp_path):
    torch.manual_seed(PLAN.seed)
    train, _ = colours.split(HELD_OUT)
    untrained = evaluate_generator(Generator(CHANNELS), train, LatentScale.of(train.w))
    fitted = fit_generator(PLAN, colours, str(tmp_path), channels=CHANNELS, held_out=HELD_OUT)
    assert evaluate_generator(fitted, train, IDENTITY)["l1"] < 0.8 * untrained["l1"]


def test_fit_starts_from_a_given_generator(colours, tmp_path):
    torch.manual_seed(1)
    start = Generator(CHANNELS)
    before = {name: value.clone() for name, value in start.state_dict().items()}
    plan = dataclasses.replace(PLAN, images=8, max_lr=0.0)
    kept = fit_generator(plan, colours, str(tmp_path), start=start, held_out=HELD_OUT)
    w = torch.randn(2, 512)
    with torch.no_grad():
        codes = repeat_rows(w, start.n_styles)
        assert torch.allclose(kept(codes), start(codes), atol=1e-4)
    assert all(torch.equal(value, start.state_dict()[name]) for name, value in before.items())
