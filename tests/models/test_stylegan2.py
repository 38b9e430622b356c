"""Compare the generator with the float64 reference, with and without gradients."""

from __future__ import annotations

import pytest
import torch

from pipeline.models import load_checkpoint
from pipeline.models.stylegan2 import Generator, n_styles_of
from pipeline.models.stylegan2_cpu import render_one
from tests.models.float64_reference import synthesise
from tests.models.tiny import ALL_LEVELS, filled, tiny_checkpoint

WIDE_AND_SMALL = {4: 64, 8: 64, 16: 32}  # more weights than pixels: the other branch of the fold


@pytest.mark.parametrize("channels", [ALL_LEVELS, WIDE_AND_SMALL, {4: 8}])
def test_images_equal_the_float64_reference(channels: dict[int, int]) -> None:
    checkpoint = tiny_checkpoint(channels=channels)
    model = load_checkpoint(checkpoint)
    state = {key: value.double() for key, value in checkpoint["state_dict"].items()}
    codes = filled("codes", (2, model.n_styles, 512))
    expected = synthesise(state, codes.double())
    with torch.no_grad():
        fast = torch.cat([render_one(model.generator, code) for code in codes.split(1)])
    plain = model.generator.reference(codes)
    assert (fast - expected).abs().max() < 1e-5 * expected.abs().max()
    assert (plain - expected).abs().max() < 1e-5 * expected.abs().max()


def test_gradients_reach_codes_and_weights() -> None:
    generator = Generator({4: 8, 8: 8})
    codes = torch.randn(2, 4, 512, requires_grad=True)
    generator(codes).square().mean().backward()
    assert codes.grad is not None
    assert codes.grad.abs().sum() > 0
    assert all(
        weight.grad is not None
        for name, weight in generator.named_parameters()
        if not name.startswith("style.")
    )


def test_in_place_weight_changes_reach_the_cpu_path() -> None:
    generator = Generator({4: 8, 8: 8})
    codes = torch.randn(1, 4, 512)
    with torch.no_grad():
        render_one(generator, codes)
        generator.conv1.conv.weight[:, :4] *= 3.0
        assert torch.allclose(render_one(generator, codes), generator(codes), atol=1e-5)


def test_weights_of_inference_mode_are_never_cached() -> None:
    with torch.inference_mode():
        generator = Generator({4: 8, 8: 8})
        codes = torch.randn(1, 4, 512)
        for factor in (1.0, 3.0):
            generator.conv1.conv.weight[:, :4] *= factor
            expected = generator.reference(codes)
            assert torch.allclose(render_one(generator, codes), expected, atol=1e-5)


@pytest.mark.parametrize("size", [64, 256])
def test_an_empty_batch_gives_no_images(size: int) -> None:
    sizes = [4 * 2**level for level in range(size.bit_length() - 2)]
    generator = Generator(dict.fromkeys(sizes, 4))
    with torch.no_grad():
        assert generator(torch.zeros(0, generator.n_styles, 512)).shape == (0, 3, size, size)


def test_equal_codes_give_equal_images() -> None:
    generator = Generator({4: 8, 8: 8})
    codes = torch.randn(1, 4, 512)
    with torch.no_grad():
        assert torch.equal(generator(codes), generator(codes))


@pytest.mark.parametrize(("size", "rows"), [(64, 10), (256, 14), (512, 16), (1024, 18)])
def test_number_of_rows_follows_the_output_size(size: int, rows: int) -> None:
    assert n_styles_of(size) == rows
