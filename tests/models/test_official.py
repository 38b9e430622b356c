"""Official checkpoint files: keys, shapes, dtypes and options equal the published ones."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from pipeline.errors import ModelError
from pipeline.models import Architecture, RestyleModel, load_checkpoint, load_model
from pipeline.models.domains import preset_of
from pipeline.models.official import official_checkpoint, original_refuses, save_official
from tests.models.tiny import tiny_checkpoint
from tests.tiny_bundle import write_tiny_bundle

TRAINED_HERE = ["psp_ffhq", "e4e_ffhq", "psp_church", "e4e_horse", "psp_cars", "psp_afhq_wild"]


def empty_model(encoder_type: str, domain: str, size: int, channels: int = 6) -> RestyleModel:
    """Return a model with the published widths, on the meta device."""
    widths = {4: 512, 8: 512, 16: 512, 32: 512, 64: 512, 128: 256, 256: 128, 512: 64, 1024: 32}
    kept = {side: width for side, width in widths.items() if side <= size}
    arguments = {"input_channels": channels, "n_styles": 2 * len(kept)}
    input_size = preset_of(domain).input_size
    with torch.device("meta"):
        return RestyleModel(
            Architecture(encoder_type, arguments, kept, mapping_layers=8, input_size=input_size)
        )


@pytest.mark.parametrize("variant", TRAINED_HERE)
def test_keys_shapes_and_dtypes_equal_published_files(shared: Path, variant: str) -> None:
    path = shared / "reference" / "layouts" / f"layout_{variant}.json"
    layout = json.loads(path.read_text())
    domain = layout["opts"]["dataset_type"].removesuffix("_encode").replace("ffhq", "faces")
    model = empty_model(layout["encoder_type"], domain, layout["opts"]["output_size"])
    written = official_checkpoint(model)
    state = {
        key: [list(value.shape), str(value.dtype).removeprefix("torch.")]
        for key, value in written["state_dict"].items()
    }
    assert state == layout["state_dict"]
    assert list(written["latent_avg"].shape) == layout["latent_avg"][0]
    assert set(written["opts"]) == set(layout["opts"])
    assert original_refuses(model) is None


@pytest.mark.parametrize("encoder_type", ["GradualStyleEncoder", "Encoder4Editing"])
def test_single_pass_files_have_the_options_of_psp_and_e4e(
    encoder_type: str,
) -> None:
    opts = official_checkpoint(empty_model(encoder_type, "cars", 512, channels=3))["opts"]
    read = {name: opts[name] for name in ("label_nc", "stylegan_size", "output_size", "input_nc")}
    assert read == {"label_nc": 0, "stylegan_size": 512, "output_size": 512, "input_nc": 3}


def test_reasons_for_refusal_are_given() -> None:
    model = empty_model("BackboneEncoder", "faces", 64)
    published = model.architecture
    assert original_refuses(model) is None
    for changed, reason in (
        ({"mapping_layers": 0}, "8 mapping layers, this one 0"),
        ({"channels": {**published.channels, 64: 256}}, "different channel widths"),
        ({"encoder_arguments": {**published.encoder_arguments, "widths": [8] * 4}}, "widths"),
        ({"encoder_type": "CompactEncoder"}, "has no CompactEncoder"),
    ):
        model.architecture = dataclasses.replace(published, **changed)
        assert reason in str(original_refuses(model))


def test_an_official_file_restores_the_model(tmp_path: Path) -> None:
    model = load_checkpoint(tiny_checkpoint("ProgressiveBackboneEncoder"))
    save_official(model, str(tmp_path / "model.pt"), {"n_iters_per_batch": 3})
    again = load_model(str(tmp_path / "model.pt"))
    assert again.fingerprint == model.fingerprint
    assert again.domain == model.domain
    raw = torch.load(tmp_path / "model.pt", weights_only=True)
    assert raw["opts"]["n_iters_per_batch"] == 3
    assert raw["opts"]["encoder_type"] == "ProgressiveBackboneEncoder"


def test_compact_encoder_cannot_be_written_as_official(tmp_path: Path) -> None:
    model = load_model(write_tiny_bundle(str(tmp_path / "tiny")))
    with pytest.raises(ModelError, match="the original code has no CompactEncoder"):
        official_checkpoint(model)
