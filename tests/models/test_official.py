"""What is written for the original code: its keys, shapes, types and options."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pipeline.errors import ModelError
from pipeline.models import Architecture, RestyleModel, load_checkpoint, load_model
from pipeline.models.official import official_checkpoint, save_official
from pipeline.models.presets import preset_of
from tests.models.tiny import tiny_checkpoint
from tests.tiny_bundle import write_tiny_bundle

TRAINED_HERE = ["psp_ffhq", "e4e_ffhq", "psp_church", "e4e_horse", "psp_cars", "psp_afhq_wild"]


def empty_model(encoder_type: str, domain: str, size: int) -> RestyleModel:
    """A model of the published widths without memory for its weights."""
    widths = {4: 512, 8: 512, 16: 512, 32: 512, 64: 512, 128: 256, 256: 128, 512: 64, 1024: 32}
    channels = {side: width for side, width in widths.items() if side <= size}
    arguments = {"input_channels": 6, "n_styles": 2 * len(channels)}
    input_size = preset_of(domain).input_size
    with torch.device("meta"):
        return RestyleModel(
            Architecture(encoder_type, arguments, channels, mapping_layers=8, input_size=input_size)
        )


@pytest.mark.parametrize("variant", TRAINED_HERE)
def test_keys_shapes_and_types_are_the_published_ones(shared: Path, variant: str) -> None:
    path = shared / "reference" / "layouts" / f"layout_{variant}.json"
    layout = json.loads(path.read_text())
    domain = layout["opts"]["dataset_type"].removesuffix("_encode").replace("ffhq", "faces")
    model = empty_model(layout["encoder_type"], domain, layout["opts"]["output_size"])
    written = official_checkpoint(model)
    found = {
        key: [list(value.shape), str(value.dtype).removeprefix("torch.")]
        for key, value in written["state_dict"].items()
    }
    assert found == layout["state_dict"]
    assert list(written["latent_avg"].shape) == layout["latent_avg"][0]
    assert set(written["opts"]) == set(layout["opts"])


def test_a_model_comes_back_from_its_official_file_as_it_was(tmp_path: Path) -> None:
    model = load_checkpoint(tiny_checkpoint("ProgressiveBackboneEncoder"))
    save_official(model, str(tmp_path / "model.pt"), {"n_iters_per_batch": 3})
    again = load_model(str(tmp_path / "model.pt"))
    assert again.fingerprint == model.fingerprint
    assert again.domain == model.domain
    raw = torch.load(tmp_path / "model.pt", weights_only=True)
    assert raw["opts"]["n_iters_per_batch"] == 3
    assert raw["opts"]["encoder_type"] == "ProgressiveBackboneEncoder"


def test_an_encoder_of_our_own_has_no_official_form(tmp_path: Path) -> None:
    model = load_model(write_tiny_bundle(str(tmp_path / "tiny")))
    with pytest.raises(ModelError, match="the original code has no CompactEncoder"):
        official_checkpoint(model)
