"""Fast twins of generator and encoders: equal algebra in float64, bounded error in bfloat16."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models import load_model
from pipeline.models.encoders import ENCODER_TYPES, NoEncoder
from pipeline.models.encoders_fast import fast_encoder
from pipeline.models.epilogue import Factors, finish, finish_in_slabs
from pipeline.models.stylegan2 import Generator
from pipeline.models.stylegan2_fast import FastGenerator, averaging, pool_side

CHANNELS = {4: 16, 8: 12, 16: 12, 32: 8, 64: 8}
# (visible part, pooled size): pooled by 4, a car's frame by 2, all of it, repeated, uneven.
FRAMES = [((64, 64), (16, 16)), ((48, 64), (24, 32)), ((64, 64), (64, 64))]
FRAMES += [((64, 64), (256, 256)), ((48, 64), (20, 30))]


def error(value: Tensor, expected: Tensor) -> float:
    return float((value.double() - expected.double()).norm() / expected.double().norm())


def generator() -> Generator:
    """Return a seeded generator with noise and biases, which new ones lack."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = Generator(CHANNELS)
        for name, weight in made.named_parameters():
            if name.endswith(("noise.weight", "bias")) and "modulation" not in name:
                nn.init.normal_(weight, std=0.2)
    return made.requires_grad_(False).eval()


@pytest.mark.parametrize(("shape", "size"), FRAMES)
def test_the_generators_twin_is_exact_in_float64(
    shape: tuple[int, int], size: tuple[int, int]
) -> None:
    exact = generator().double()
    twin = FastGenerator(exact, shape, size, torch.float64)
    codes = torch.randn(3, exact.n_styles, 512, dtype=torch.float64)
    images = exact.reference(codes)
    top, left = ((64 - length) // 2 for length in shape)
    visible = images[:, :, top : top + shape[0], left : left + shape[1]]
    assert error(twin(codes), images) < 1e-13
    assert error(twin.pooled(codes), F.adaptive_avg_pool2d(visible, size)) < 1e-13


def test_bfloat16_moves_an_image_by_under_a_hundredth() -> None:
    model = generator()
    twin = FastGenerator(model, (64, 64), (16, 16))
    codes = torch.randn(2, model.n_styles, 512)
    images = model.reference(codes)
    assert twin(codes).dtype == torch.float32
    assert error(twin(codes), images) < 0.01
    assert error(twin.pooled(codes), F.adaptive_avg_pool2d(images, 16)) < 0.01


def test_averages_are_taken_over_whole_squares() -> None:
    assert pool_side(1024, (1024, 1024), (256, 256)) == 4
    assert pool_side(512, (384, 512), (192, 256)) == 2
    assert pool_side(64, (64, 64), (256, 256)) == 1
    assert pool_side(1024, (1024, 1024), (250, 250)) == 1
    line = averaging(64, 16, 64, 16)
    assert torch.allclose(line.sum(dim=1)[2:-2], torch.ones(12, dtype=torch.float64))


def small_encoder(kind: str, n_styles: int) -> nn.Module:
    """Return a seeded encoder of few channels, with statistics that a new one lacks."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = ENCODER_TYPES[kind](input_channels=6, n_styles=n_styles, widths=[16, 16, 32, 32])
        for norm in encoder.modules():
            if isinstance(norm, nn.BatchNorm2d):
                nn.init.normal_(norm.running_mean, std=0.3)
                nn.init.uniform_(norm.running_var, 0.5, 2)
                nn.init.normal_(norm.weight, mean=1, std=0.2)
                nn.init.normal_(norm.bias, std=0.2)
    return encoder.requires_grad_(False).eval()


def check_twin(encoder: nn.Module, images: Tensor) -> None:
    """Compare the twins in float64 and bfloat16 with the encoder itself."""
    exact = copy.deepcopy(encoder).double()
    with torch.no_grad():
        codes = exact(images.double())
        assert error(fast_encoder(exact, torch.float64)(images.double()), codes) < 1e-13
        rounded = fast_encoder(encoder)(images)
    assert rounded.dtype == torch.float32
    assert error(rounded, codes) < 0.02


@pytest.mark.parametrize("kind", ["BackboneEncoder", "ResNetProgressiveBackboneEncoder"])
def test_an_encoders_twin_is_exact_in_float64(kind: str) -> None:
    check_twin(small_encoder(kind, 2), torch.rand(1, 6, 64, 64) * 2 - 1)


@pytest.mark.slow  # heads of three levels are 95 million weights
@pytest.mark.parametrize("kind", ["Encoder4Editing", "ResNetGradualStyleEncoder"])
def test_a_pyramids_twin_is_exact_in_float64(kind: str) -> None:
    check_twin(small_encoder(kind, 8), torch.rand(1, 6, 64, 64) * 2 - 1)


def test_the_compact_encoder_has_a_twin(tiny_bundle: str) -> None:
    check_twin(load_model(tiny_bundle).encoder, torch.rand(2, 6, 64, 64) * 2 - 1)


def test_a_model_without_an_encoder_has_no_twin() -> None:
    with pytest.raises(TypeError, match="NoEncoder has no fast twin"):
        fast_encoder(NoEncoder(6, 4))


def factors(c: int, side: int, *, styled: bool, mixed: bool, pool: int) -> Factors:
    """Return random factors of two faces; views of wider tensors, as the generator passes them."""
    wide = torch.randn(2, 3, 128)
    return Factors(
        wide[:, 0, :c].abs() + 0.5,
        torch.randn(side, side),
        torch.randn(c),
        wide[:, 1, :c] if styled else None,
        torch.randn(2, 3, c) if mixed else None,
        pool,
    )


# channels, side, blurred, for a next layer, to RGB, averaged over squares of
PASSES = [
    (32, 8, True, True, False, 1),
    (24, 4, False, True, True, 1),
    (48, 8, False, False, True, 4),
]


@pytest.mark.parametrize(("c", "side", "blurred", "styled", "mixed", "pool"), PASSES)
def test_slabs_give_the_plain_pass(
    c: int, side: int, blurred: bool, styled: bool, mixed: bool, pool: int
) -> None:
    made = factors(c, side, styled=styled, mixed=mixed, pool=pool)
    y = torch.randn(2, c, side + blurred, side + blurred).contiguous(
        memory_format=torch.channels_last
    )
    x, image = finish(y.clone(), made, blurred=blurred)
    slab_x, slab_image = finish_in_slabs(y, made, blurred=blurred)
    assert (x is None, image is None) == (not styled, not mixed)
    if x is not None and slab_x is not None:
        assert torch.allclose(slab_x, x, atol=1e-5)
    if image is not None and slab_image is not None:
        assert torch.allclose(slab_image, image, atol=1e-5)
