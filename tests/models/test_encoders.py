"""Compare the encoders with the float64 reference; check how arguments are read from weights."""

from __future__ import annotations

import pytest
import torch

from pipeline.choices import OFFICIAL_TYPES
from pipeline.models import ENCODER_TYPES, load_checkpoint
from pipeline.models.encoders import OFFICIAL_ENCODERS, official_arguments, progressive
from tests.models.float64_reference import encode
from tests.models.tiny import ALL_LEVELS, CHANNELS, WIDTHS, portrait, tiny_checkpoint

PYRAMIDS = {"GradualStyleEncoder", "ResNetGradualStyleEncoder", "Encoder4Editing"}


@pytest.mark.parametrize("encoder_type", sorted(ENCODER_TYPES.keys() - {"CompactEncoder"}))
def test_official_encoders_equal_the_float64_reference(encoder_type: str) -> None:
    channels = ALL_LEVELS if encoder_type in PYRAMIDS else CHANNELS
    checkpoint = tiny_checkpoint(encoder_type, input_channels=3, channels=channels)
    model = load_checkpoint(checkpoint)
    state = {key: value.double() for key, value in checkpoint["state_dict"].items()}
    image = portrait(128, 128)
    with torch.no_grad():
        rows = model.encoder(image)
    expected = encode(state, encoder_type, image.double())
    assert rows.shape == (1, 2 * len(channels), 512)
    assert (rows - expected).abs().max() < 1e-5 * expected.abs().max()


def test_encoders_accept_a_wide_input() -> None:
    checkpoint = tiny_checkpoint("ResNetBackboneEncoder", input_channels=3)
    model = load_checkpoint(checkpoint)
    state = {key: value.double() for key, value in checkpoint["state_dict"].items()}
    wide = portrait(96, 128)
    with torch.no_grad():
        rows = model.encoder(wide)
    expected = encode(state, "ResNetBackboneEncoder", wide.double())
    assert (rows - expected).abs().max() < 1e-5 * expected.abs().max()


def test_progressive_rows_are_offsets_from_row_zero() -> None:
    rows = torch.tensor([[[1.0], [0.5], [-2.0]]])
    assert progressive(rows).flatten().tolist() == [1.0, 1.5, -1.0]


def test_arguments_are_read_from_weight_shapes() -> None:
    state = tiny_checkpoint("ResNetGradualStyleEncoder")["state_dict"]
    shapes = {
        key.removeprefix("encoder."): list(value.shape)
        for key, value in state.items()
        if key.startswith("encoder.")
    }
    assert official_arguments("ResNetGradualStyleEncoder", shapes) == {
        "input_channels": 6,
        "n_styles": 4,
        "widths": WIDTHS,
    }


def test_listed_encoder_types_equal_the_classes() -> None:
    assert tuple(encoder.__name__ for encoder in OFFICIAL_ENCODERS) == OFFICIAL_TYPES
