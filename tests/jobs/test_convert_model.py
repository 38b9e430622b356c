"""Convert official checkpoints to bundles."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from jobs.convert_model import main
from pipeline.models import OFFICIAL_TYPES, load_checkpoint, load_model
from tests.models.nvlabs_pickle import network, pickled
from tests.models.tiny import tiny_checkpoint


def test_a_converted_checkpoint_is_the_same_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = tiny_checkpoint("ResNetBackboneEncoder", dataset_type="horse_encode")
    torch.save(checkpoint, tmp_path / "official.pt")
    bundle = str(tmp_path / "horses")
    assert main([str(tmp_path / "official.pt"), bundle, "--licence", "CC-BY-NC-4.0"]) == 0
    result = json.loads(capsys.readouterr().out)
    model = load_model(bundle)
    assert (model.name, model.domain, model.licence) == ("horses", "horse", "CC-BY-NC-4.0")
    assert result["fingerprint"] == model.fingerprint == load_checkpoint(checkpoint).fingerprint


def test_missing_options_are_reported_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = tiny_checkpoint("ResNetBackboneEncoder")
    torch.save({**checkpoint, "opts": {}}, tmp_path / "bare.pt")
    bundle = str(tmp_path / "cars")
    assert main([str(tmp_path / "bare.pt"), bundle]) == 2
    assert "--encoder-type NAME" in capsys.readouterr().err
    flags = ["--encoder-type", "ResNetBackboneEncoder", "--domain", "cars"]
    assert main([str(tmp_path / "bare.pt"), bundle, *flags]) == 0
    model = load_model(bundle)
    assert (model.domain, model.input_size) == ("cars", (192, 256))


def test_weights_without_an_encoder_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"state_dict": {"layer.weight": torch.zeros(2, 2)}}, tmp_path / "other.pt")
    assert main([str(tmp_path / "other.pt"), str(tmp_path / "bundle")]) == 2
    said = capsys.readouterr().err
    assert said.endswith(
        "has no encoder weights of a known type, so it is not a ReStyle, pSp or e4e checkpoint\n"
    )


def test_an_nvidia_network_becomes_a_generator_bundle(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "afhqcat.pkl").write_bytes(pickled(network()))
    bundle = str(tmp_path / "cats")
    assert main([str(tmp_path / "afhqcat.pkl"), bundle]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["fingerprint"] == load_model(str(tmp_path / "afhqcat.pkl")).fingerprint
    model = load_model(bundle)
    assert (model.domain, model.generator_alone, model.generator_size) == ("afhq_cat", True, 16)


def test_the_choice_of_encoders_is_listed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for args in (["--help"], ["a.pt", "b", "--encoder-type", "IRSE"]):
        with pytest.raises(SystemExit):
            main(args)
        said = "".join(capsys.readouterr())
        assert [name for name in OFFICIAL_TYPES if name not in said] == []


def test_converting_a_bundle_again_keeps_its_licence(tmp_path: Path) -> None:
    bundle, other = str(tmp_path / "copy"), str(tmp_path / "other")
    assert main(["demo", bundle, "--stored", "float16"]) == 0
    assert load_model(bundle).licence == load_model("demo").licence != "unknown"
    assert main([bundle, other, "--licence", "CC0-1.0"]) == 0
    assert load_model(other).licence == "CC0-1.0"


def test_a_file_of_another_kind_is_no_bundle(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.md").write_text("")
    assert main([str(tmp_path / "notes.md"), str(tmp_path / "bundle")]) == 2
    assert "notes.md' is not a model: give a bundle's folder, or" in capsys.readouterr().err


def test_a_file_that_does_not_fit_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"g_ema": {}}, tmp_path / "generator.pt")
    assert main([str(tmp_path / "generator.pt"), str(tmp_path / "bundle")]) == 2
    said = capsys.readouterr().err
    assert "no 'state_dict'" in said
    assert said.count("\n") == 1
