import dataclasses

import pytest
import torch

from pipeline.models.stylegan2 import Generator
from pipeline.training.generator import (
    GeneratorPlan,
    LatentScale,
    evaluate_generator,
    fit_generator,
    random_batches,
    repeat_rows,
)

PLAN = GeneratorPlan(
    channels={4: 8, 8: 8, 16: 8, 32: 8},
    images=160,
    batch=8,
    held_out=8,
    report_every=80,
    save_every=40,
)


def test_folding_the_scale_gives_the_same_images_from_w_as_it_is():
    torch.manual_seed(0)
    generator = Generator(PLAN.channels)
    w = torch.randn(5, 512) * 0.3 + torch.randn(512)
    scale = LatentScale.of(w)
    with torch.no_grad():
        before = generator(repeat_rows(scale.normalise(w), generator.n_styles))
        scale.fold_into(generator)
        after = generator(repeat_rows(w, generator.n_styles))
    assert torch.allclose(before, after, atol=1e-4)


def test_an_epoch_shows_each_pair_at_most_once_and_the_next_has_another_order():
    batches = random_batches(10, 5, seed=0)
    first, second = [torch.cat([next(batches), next(batches)]) for _ in range(2)]
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(10))
    assert not torch.equal(first, second)


def test_fitting_brings_the_distance_to_its_pairs_down(colours, tmp_path):
    torch.manual_seed(PLAN.seed)
    train, _ = colours.split(PLAN.held_out)
    untrained = evaluate_generator(Generator(PLAN.channels), train, LatentScale.of(train.w))
    fitted = fit_generator(PLAN, colours, tmp_path)
    identity = LatentScale(torch.zeros(512), 1.0)
    assert evaluate_generator(fitted, train, identity)["l1"] < 0.8 * untrained["l1"]


def test_a_fit_that_was_killed_ends_as_an_unbroken_one(colours, tmp_path):
    plan = dataclasses.replace(PLAN, images=48, save_every=24, report_every=48)
    whole = fit_generator(plan, colours, tmp_path / "whole")
    half = tmp_path / "half"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.training.generator.average_into", _stop_after(3))
        with pytest.raises(KeyboardInterrupt):
            fit_generator(plan, colours, half)
    resumed = fit_generator(plan, colours, half)
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name


def _stop_after(batches: int):
    from pipeline.training.schedule import average_into

    calls = 0

    def stop(*arguments):
        nonlocal calls
        calls += 1
        average_into(*arguments)
        if calls > batches:
            raise KeyboardInterrupt

    return stop
