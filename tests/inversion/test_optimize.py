"""Latent optimisation: it finds, it repeats itself, and faces keep to themselves."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.inversion import Inversion, OptimizeSettings, latent_spread, optimize
from pipeline.metrics.lpips import Lpips
from pipeline.models import RestyleModel, load_checkpoint, load_model
from tests.models.tiny import tiny_checkpoint

SETTINGS = OptimizeSettings(iterations=60, rate=0.1, noise=0.1, lpips_weight=0.0, spread=0.5)


@pytest.fixture(scope="module")
def model(tiny_bundle: str) -> RestyleModel:
    """A seeded model of 64 px, its average latent moved to 0, amid the targets' codes."""
    model = load_model(tiny_bundle)
    model.latent_avg.zero_()
    return model


@pytest.fixture(scope="module")
def codes() -> Tensor:
    """W codes of three targets as W+, [3, 10, 512]."""
    draw = torch.Generator().manual_seed(5)
    return (torch.randn(3, 1, 512, generator=draw) * 0.5).expand(-1, 10, -1).contiguous()


@pytest.fixture(scope="module")
def targets(model: RestyleModel, codes: Tensor) -> Tensor:
    """What the model makes of `codes`, [3, 3, 64, 64]."""
    with torch.no_grad():
        return model.generator(codes)


@pytest.fixture(scope="module")
def found(model: RestyleModel, targets: Tensor) -> Inversion:
    """The three targets, fitted."""
    return optimize(model, targets, seeds=[1, 2, 3], settings=SETTINGS)


def errors(images: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error of the last three axes."""
    return (images - targets).square().mean(dim=(-3, -2, -1))


def test_images_of_known_codes_are_found_again(
    model: RestyleModel, targets: Tensor, found: Inversion
) -> None:
    begin = errors(model.generator(found.start), targets)
    steps = errors(found.step_images, targets[:, None])
    assert (steps[:, -1] < 0.1 * begin).all()
    assert (steps[:, 1:] < steps[:, :-1]).float().mean() > 0.9


def test_the_last_step_is_the_end_and_shapes_are_those_of_invert(
    model: RestyleModel, found: Inversion
) -> None:
    assert found.w_plus.shape == (3, 5, 10, 512)
    assert found.step_images.shape == (3, 5, 3, 64, 64)
    assert torch.allclose(model.generator(found.w_plus[:, -1]), found.images, atol=1e-5)
    assert found.generator_passes.tolist() == [65] * 3
    assert not found.w_plus.requires_grad


def test_the_same_seed_gives_the_same_bits(
    model: RestyleModel, targets: Tensor, found: Inversion
) -> None:
    again = optimize(model, targets, seeds=[1, 2, 3], settings=SETTINGS)
    assert torch.equal(again.w_plus, found.w_plus)
    other = optimize(model, targets, seeds=[1, 9, 3], settings=SETTINGS)
    assert (other.w_plus - found.w_plus).abs().amax(dim=(1, 2, 3)).gt(1e-3).tolist() == [
        False,
        True,
        False,
    ]


def test_a_face_does_not_depend_on_its_neighbours(model: RestyleModel, targets: Tensor) -> None:
    # Few iterations: rounding grows with each, as in any descent.
    few = replace(SETTINGS, iterations=10)
    together = optimize(model, targets, seeds=[1, 2, 3], settings=few)
    alone = optimize(model, targets[1:2], seeds=[2], settings=few)
    assert torch.allclose(together.w_plus[1], alone.w_plus[0], atol=1e-4)


def test_in_w_all_rows_are_one(model: RestyleModel, targets: Tensor) -> None:
    found = optimize(
        model, targets, seeds=[1, 2, 3], settings=replace(SETTINGS, space="w"), steps=2
    )
    assert torch.equal(found.w_plus, found.w_plus[:, :, :1].expand_as(found.w_plus))
    begin = errors(model.generator(found.start), targets)
    assert (errors(found.step_images[:, -1], targets) < 0.2 * begin).all()


def test_a_distance_penalty_holds_a_hybrid_at_its_start(
    model: RestyleModel, targets: Tensor, codes: Tensor
) -> None:
    start = codes + 0.1
    held = replace(SETTINGS, distance_weight=1e6, noise=0.0)
    near = optimize(model, targets, seeds=[1, 2, 3], settings=held, start=start)
    free = optimize(model, targets, seeds=[1, 2, 3], settings=SETTINGS, start=start)
    assert (near.w_plus[:, -1] - start).abs().max() < 0.02
    assert (free.w_plus[:, -1] - start).abs().max() > 0.1
    assert torch.equal(near.start, start)


def test_the_perceptual_distance_falls_too(model: RestyleModel, targets: Tensor) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        lpips = Lpips().requires_grad_(False)
    for index in range(5):
        head = lpips.get_parameter(f"lin{index}.model.1.weight")
        head.copy_(head.abs())
    seen = replace(SETTINGS, iterations=20, l2_weight=0.0, lpips_weight=1.0, perceptual_side=64)
    found = optimize(model, targets[:1], seeds=[4], settings=seen, perceptual=lpips, steps=2)
    begin = lpips(model.generator(found.start), targets[:1])
    assert (lpips(found.step_images[:, -1], targets[:1]) < 0.7 * begin).all()


def test_a_target_that_is_not_finite_marks_its_own_face_only(
    model: RestyleModel, targets: Tensor
) -> None:
    broken = targets.clone()
    broken[1, 0, 3, 3] = float("inf")
    few = replace(SETTINGS, iterations=5)
    found = optimize(model, broken, seeds=[1, 2, 3], settings=few)
    assert found.finite.tolist() == [True, False, True]


def test_the_model_is_left_as_it_was(model: RestyleModel, targets: Tensor) -> None:
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.generator.requires_grad_(True)
    model.encoder.train()
    try:
        optimize(model, targets, seeds=[1, 2, 3], settings=replace(SETTINGS, iterations=5))
        assert all(weight.requires_grad for weight in model.generator.parameters())
        assert all(weight.grad is None for weight in model.parameters())
        assert model.encoder.training
        assert not model.generator.training
    finally:
        model.requires_grad_(False).eval()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_rate_and_noise_follow_the_projectors_schedule() -> None:
    settings = OptimizeSettings(iterations=1000, rate=0.1, noise=0.5)
    rates = [settings.rate_at(k) for k in range(1000)]
    assert rates[0] == pytest.approx(0.1 * 1 / 50)
    assert rates[24] == pytest.approx(0.05)
    assert rates[100] == rates[700] == pytest.approx(0.1)
    assert rates[875] == pytest.approx(0.05, rel=0.01)
    assert rates[999] < 1e-5
    assert settings.noise_at(0) == 0.5
    assert settings.noise_at(375) == pytest.approx(0.125)
    assert settings.noise_at(800) == 0


def test_settings_are_plain_values() -> None:
    assert OptimizeSettings(**json.loads(json.dumps(asdict(SETTINGS)))) == SETTINGS


def test_the_spread_of_a_mapping_network_is_measured() -> None:
    model = load_checkpoint(tiny_checkpoint("ResNetBackboneEncoder"))
    with torch.no_grad():
        w = model.generator.map_z(torch.randn(4000, 512))
    assert latent_spread(model) == pytest.approx(
        float(w.std(dim=0).square().mean().sqrt()), rel=0.1
    )


def test_without_a_mapping_network_the_average_latent_tells_the_spread(tiny_bundle: str) -> None:
    model = load_model(tiny_bundle)
    model.latent_avg.zero_()
    with pytest.raises(ConfigError, match="does not tell how far its codes spread"):
        latent_spread(model)
    model.latent_avg.fill_(0.2)
    assert latent_spread(model) == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"space": "z"}, "space must be 'w' or 'w\\+', not 'z'"),
        ({"iterations": 0}, "iterations is 0"),
        ({"rate": -1.0}, "rate is -1.0, expected 0 to 100"),
        ({"noise_ramp": 1.5}, "noise_ramp is 1.5, expected 0 to 1"),
        ({"distance_weight": float("nan")}, "distance_weight is nan"),
        ({"l2_weight": 0.0, "lpips_weight": 0.0}, "nothing would be matched"),
        ({"perceptual_side": 8}, "perceptual_side is 8"),
        ({"spread": 0.0}, "spread is 0.0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        OptimizeSettings(**wrong)  # type: ignore[arg-type]


def test_what_does_not_go_together_is_refused(
    model: RestyleModel, targets: Tensor, codes: Tensor
) -> None:
    with pytest.raises(ConfigError, match="3 images need as many seeds, not 1"):
        optimize(model, targets, seeds=[1], settings=SETTINGS)
    with pytest.raises(ConfigError, match="steps is 61, expected 1 to 60"):
        optimize(model, targets, seeds=[1, 2, 3], settings=SETTINGS, steps=61)
    with pytest.raises(ConfigError, match="no perceptual network is given"):
        optimize(model, targets, seeds=[1, 2, 3], settings=replace(SETTINGS, lpips_weight=1.0))
    uneven = codes + torch.arange(10.0)[:, None]
    with pytest.raises(ConfigError, match="start has rows that differ"):
        optimize(
            model, targets, seeds=[1, 2, 3], settings=replace(SETTINGS, space="w"), start=uneven
        )
