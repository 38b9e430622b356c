import pytest
import torch

from pipeline.demo.growth import with_levels, with_rows
from pipeline.models.encoders import CompactEncoder
from pipeline.models.stylegan2 import Generator

CHANNELS = {4: 8, 8: 8, 16: 6, 32: 4}
GROWN = {**CHANNELS, 64: 3}


@torch.no_grad()
def test_grown_generator_begins_with_the_upsampled_image():
    small = Generator(CHANNELS)
    grown = with_levels(small, GROWN)
    code = torch.randn(2, grown.n_styles, 512)
    upsampled = grown.to_rgbs[-1].upsample(small(code[:, : small.n_styles]))
    assert torch.allclose(grown(code), upsampled, atol=1e-5)
    again = with_levels(grown, CHANNELS)
    assert torch.equal(again(code[:, : small.n_styles]), small(code[:, : small.n_styles]))


def test_level_of_another_width_is_refused():
    with pytest.raises(ValueError, match="change the width"):
        with_levels(Generator(CHANNELS), {**GROWN, 16: 7})


@torch.no_grad()
def test_new_rows_repeat_the_last_one():
    encoder = CompactEncoder(3, input_size=32, width=8)
    pair = torch.randn(2, 6, 32, 32)
    rows, more = encoder(pair), with_rows(encoder, 5)(pair)
    assert torch.allclose(more, rows[:, [0, 1, 2, 2, 2]], atol=1e-6)
    assert torch.allclose(with_rows(encoder, 2)(pair), rows[:, :2], atol=1e-6)
