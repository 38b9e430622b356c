"""Latent optimisation: convergence, reproducibility, independent faces, and its settings."""

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

SETTINGS = OptimizeSettings(iterations=60, lr=0.1, noise=0.1, lpips_weight=0.0, spread=0.5)


@pytest.fixture(scope="module")
def model(tiny_bundle: str) -> RestyleModel:
    """Seeded model of 64 px, with its average latent set to 0, the mean of the targets' codes."""
    model = load_model(tiny_bundle)
    model.latent_avg.zero_()
    return model


@pytest.fixture(scope="module")
def codes() -> Tensor:
    """W codes of three targets as W+, [3, 10, 512]."""
    generator = torch.Generator().manual_seed(5)
    return (torch.randn(3, 1, 512, generator=generator) * 0.5).expand(-1, 10, -1).contiguous()


@pytest.fixture(scope="module")
def targets(model: RestyleModel, codes: Tensor) -> Tensor:
    """Images of `codes`, [3, 3, 64, 64]."""
    with torch.no_grad():
        return model.generator(codes)


@pytest.fixture(scope="module")
def result(model: RestyleModel, targets: Tensor) -> Inversion:
    """Inversion of the three targets."""
    return optimize(model, targets, seeds=[1, 2, 3], settings=SETTINGS)


def errors(images: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error of the last three axes."""
    return (images - targets).square().mean(dim=(-3, -2, -1))


def test_images_of_known_codes_are_matched(
    model: RestyleModel, targets: Tensor, result: Inversion
) -> None:
    initial = errors(model.generator(result.start), targets)
    steps = errors(result.step_images, targets[:, None])
    assert (steps[:, -1] < 0.1 * initial).all()
    assert (steps[:, 1:] < steps[:, :-1]).float().mean() > 0.9


def test_results_have_the_shapes_of_invert(model: RestyleModel, result: Inversion) -> None:
    assert result.w_plus.shape == (3, 5, 10, 512)
    assert result.step_images.shape == (3, 5, 3, 64, 64)
    assert torch.allclose(model.generator(result.w_plus[:, -1]), result.images, atol=1e-5)
    assert result.generator_passes.tolist() == [65] * 3
    assert not result.w_plus.requires_grad


def test_equal_seeds_give_equal_bits(
    model: RestyleModel, targets: Tensor, result: Inversion
) -> None:
    again = optimize(model, targets, seeds=[1, 2, 3], settings=SETTINGS)
    assert torch.equal(again.w_plus, result.w_plus)
    other = optimize(model, targets, seeds=[1, 9, 3], settings=SETTINGS)
    assert (other.w_plus - result.w_plus).abs().amax(dim=(1, 2, 3)).gt(1e-3).tolist() == [
        False,
        True,
        False,
    ]


def test_a_face_does_not_depend_on_its_neighbours(model: RestyleModel, targets: Tensor) -> None:
    # Few iterations: rounding grows with each, as in any descent.
    short = replace(SETTINGS, iterations=10)
    together = optimize(model, targets, seeds=[1, 2, 3], settings=short)
    alone = optimize(model, targets[1:2], seeds=[2], settings=short)
    assert torch.allclose(together.w_plus[1], alone.w_plus[0], atol=1e-4)


def test_in_w_all_rows_are_equal(model: RestyleModel, targets: Tensor) -> None:
    result = optimize(
        model, targets, seeds=[1, 2, 3], settings=replace(SETTINGS, space="w"), steps=2
    )
    assert torch.equal(result.w_plus, result.w_plus[:, :, :1].expand_as(result.w_plus))
    initial = errors(model.generator(result.start), targets)
    assert (errors(result.step_images[:, -1], targets) < 0.2 * initial).all()


def test_a_distance_penalty_keeps_the_start(
    model: RestyleModel, targets: Tensor, codes: Tensor
) -> None:
    start = codes + 0.1
    held = replace(SETTINGS, distance_weight=1e6, noise=0.0)
    near = optimize(model, targets, seeds=[1, 2, 3], settings=held, start=start)
    free = optimize(model, targets, seeds=[1, 2, 3], settings=SETTINGS, start=start)
    assert (near.w_plus[:, -1] - start).abs().max() < 0.02
    assert (free.w_plus[:, -1] - start).abs().max() > 0.1
    assert torch.equal(near.start, start)


def test_the_perceptual_distance_decreases(model: RestyleModel, targets: Tensor) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        lpips = Lpips().requires_grad_(False)
    for index in range(5):
        head = lpips.get_parameter(f"lin{index}.model.1.weight")
        head.copy_(head.abs())
    settings = replace(SETTINGS, iterations=20, l2_weight=0.0, lpips_weight=1.0, perceptual_side=64)
    result = optimize(model, targets[:1], seeds=[4], settings=settings, perceptual=lpips, steps=2)
    initial = lpips(model.generator(result.start), targets[:1])
    assert (lpips(result.step_images[:, -1], targets[:1]) < 0.7 * initial).all()


def test_a_non_finite_target_affects_no_other(model: RestyleModel, targets: Tensor) -> None:
    broken = targets.clone()
    broken[1, 0, 3, 3] = float("inf")
    short = replace(SETTINGS, iterations=5)
    result = optimize(model, broken, seeds=[1, 2, 3], settings=short)
    assert result.finite.tolist() == [True, False, True]


def test_the_model_is_restored(model: RestyleModel, targets: Tensor) -> None:
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


def test_lr_and_noise_follow_the_projector() -> None:
    settings = OptimizeSettings(iterations=1000, lr=0.1, noise=0.5)
    lrs = [settings.lr_at(k) for k in range(1000)]
    assert lrs[0] == pytest.approx(0.1 * 1 / 50)
    assert lrs[24] == pytest.approx(0.05)
    assert lrs[100] == lrs[700] == pytest.approx(0.1)
    assert lrs[875] == pytest.approx(0.05, rel=0.01)
    assert lrs[999] < 1e-5
    assert settings.noise_at(0) == 0.5
    assert settings.noise_at(375) == pytest.approx(0.125)
    assert settings.noise_at(800) == 0


def test_settings_are_json_values() -> None:
    assert OptimizeSettings(**json.loads(json.dumps(asdict(SETTINGS)))) == SETTINGS
    assert SETTINGS.to_dict()["rate"] == SETTINGS.lr, "the key in the fingerprints of tables"


def test_the_spread_of_a_mapping_network_is_measured() -> None:
    model = load_checkpoint(tiny_checkpoint("ResNetBackboneEncoder"))
    with torch.no_grad():
        w = model.generator.map_z(torch.randn(4000, 512))
    assert latent_spread(model) == pytest.approx(
        float(w.std(dim=0).square().mean().sqrt()), rel=0.1
    )


def test_the_average_latent_estimates_the_spread(tiny_bundle: str) -> None:
    model = load_model(tiny_bundle)
    model.latent_avg.zero_()
    with pytest.raises(ConfigError, match="its codes have a spread of 0"):
        latent_spread(model)
    model.latent_avg.fill_(0.2)
    assert latent_spread(model) == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"space": "z"}, "space must be 'w' or 'w\\+', not 'z'"),
        ({"iterations": 0}, "iterations is 0"),
        ({"lr": -1.0}, "lr is -1.0, expected 0 to 100"),
        ({"noise_ramp": 1.5}, "noise_ramp is 1.5, expected 0 to 1"),
        ({"distance_weight": float("nan")}, "distance_weight is nan"),
        ({"l2_weight": 0.0, "lpips_weight": 0.0}, "set one of them above 0"),
        ({"perceptual_side": 8}, "perceptual_side is 8"),
        ({"spread": 0.0}, "spread is 0.0"),
    ],
)
def test_invalid_settings_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OptimizeSettings(**wrong)  # type: ignore[arg-type]


def test_inconsistent_arguments_are_refused(
    model: RestyleModel, targets: Tensor, codes: Tensor
) -> None:
    with pytest.raises(ConfigError, match="got 1 seeds for 3 images"):
        optimize(model, targets, seeds=[1], settings=SETTINGS)
    with pytest.raises(ConfigError, match="steps is 61, expected 1 to 60"):
        optimize(model, targets, seeds=[1, 2, 3], settings=SETTINGS, steps=61)
    with pytest.raises(ConfigError, match="there is no perceptual network"):
        optimize(model, targets, seeds=[1, 2, 3], settings=replace(SETTINGS, lpips_weight=1.0))
    uneven = codes + torch.arange(10.0)[:, None]
    with pytest.raises(ConfigError, match="start has rows that differ"):
        optimize(
            model, targets, seeds=[1, 2, 3], settings=replace(SETTINGS, space="w"), start=uneven
        )
