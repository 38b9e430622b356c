"""Bundles load with the weights, card and fingerprint that were saved, from any storage."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest
import torch

from pipeline.errors import ModelError, StorageError
from pipeline.models import RestyleModel, load_checkpoint, load_model, save_bundle
from pipeline.models.checkpoint import read_checkpoint
from pipeline.models.model import Architecture
from tests.models.tiny import CHANNELS, tiny_checkpoint
from tests.storage import cut_off

_COMPACT = {"input_channels": 6, "n_styles": 4}


@pytest.fixture(scope="module")
def model() -> RestyleModel:
    """Return a tiny model."""
    return load_checkpoint(tiny_checkpoint("ResNetProgressiveBackboneEncoder"))


@pytest.fixture(scope="module")
def bundle(model: RestyleModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of its bundle; tests that change it use a copy."""
    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    save_bundle(model, str(folder))
    return folder


@pytest.mark.parametrize("name", ["bundle", "demo"])
def test_loading_a_model_imports_no_compiler(name: str, bundle: Path) -> None:
    """Every driver and inverter loads one, and the import takes two seconds."""
    place = str(bundle) if name == "bundle" else name
    code = f"""
import sys
from pipeline.models import load_model
load_model({place!r})
print({{"torch._dynamo", "sympy"}} & set(sys.modules))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


@pytest.fixture
def broken(bundle: Path, tmp_path: Path) -> Path:
    """Return a copy of the bundle for a test to damage."""
    for file in bundle.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def test_bundle_keeps_the_fingerprint_of_its_checkpoint(model: RestyleModel, bundle: Path) -> None:
    loaded = load_model(str(bundle))
    assert loaded.fingerprint == model.fingerprint
    assert loaded.metadata == model.metadata
    assert loaded.architecture == model.architecture


def test_a_tilde_is_the_home_folder(
    model: RestyleModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    save_bundle(model, "~/models/tiny")
    assert (tmp_path / "models" / "tiny" / "model.json").exists()
    assert load_model("~/models/tiny").fingerprint == model.fingerprint


def test_a_bundle_loads_from_any_fsspec_uri(model: RestyleModel) -> None:
    save_bundle(model, "memory://models/tiny")
    assert load_model("memory://models/tiny/").fingerprint == model.fingerprint


def test_a_checkpoint_loads_from_any_fsspec_uri(model: RestyleModel) -> None:
    with fsspec.open("memory://models/tiny.pt", "wb") as file:
        torch.save(tiny_checkpoint("ResNetProgressiveBackboneEncoder"), file)
    assert load_model("memory://models/tiny.pt").fingerprint == model.fingerprint


def test_official_dictionary_in_memory_loads_as_a_model(model: RestyleModel) -> None:
    checkpoint = tiny_checkpoint("ResNetProgressiveBackboneEncoder")
    assert load_model(checkpoint, device="cpu").fingerprint == model.fingerprint
    bare = {**checkpoint, "opts": {}}
    with_hints = load_model(bare, encoder_type="ResNetProgressiveBackboneEncoder", domain="church")
    assert with_hints.domain == "church"


@pytest.mark.parametrize("device", ["cuda:99", "gpu", "5"])
def test_a_missing_device_is_reported_in_one_line(device: str) -> None:
    with pytest.raises(ModelError, match=f"cannot move a model to device '{device}'") as error:
        load_model("demo", device=device)
    assert "\n" not in str(error.value)


def test_repr_is_one_line_with_sizes_and_fingerprint(model: RestyleModel) -> None:
    assert repr(model) == (
        "RestyleModel('checkpoint', faces, 8 px, 4 styles, ResNetProgressiveBackboneEncoder, "
        f"{model.fingerprint[:12]})"
    )
    with torch.device("meta"):
        assert repr(RestyleModel(model.architecture)).endswith("Encoder, without weights)")


def test_half_precision_bundle_computes_in_float32(model: RestyleModel, tmp_path: Path) -> None:
    save_bundle(model, str(tmp_path), stored="float16")
    loaded = load_model(str(tmp_path))
    weight = model.encoder.state_dict()["conv1.weight"]
    assert torch.equal(loaded.encoder.state_dict()["conv1.weight"], weight.half().float())
    assert loaded.latent_avg.dtype == torch.float32
    assert loaded.fingerprint != model.fingerprint


def test_weight_beyond_float16_range_is_refused(tmp_path: Path) -> None:
    model = load_checkpoint(tiny_checkpoint("ResNetProgressiveBackboneEncoder"))
    model.latent_avg = model.latent_avg.clone()
    model.latent_avg[0, 0] = 1e5
    with pytest.raises(ModelError, match="'latent_avg' reaches 100000, more than float16 can hold"):
        save_bundle(model, str(tmp_path / "half"), stored="float16")
    assert not (tmp_path / "half").exists()
    save_bundle(model, str(tmp_path / "whole"))
    assert load_model(str(tmp_path / "whole")).fingerprint == model.fingerprint


def test_an_unknown_storage_type_is_refused(model: RestyleModel, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="float32 or float16"):
        save_bundle(model, str(tmp_path), stored="int8")


def test_fingerprint_depends_on_weights_and_architecture(model: RestyleModel) -> None:
    checkpoint = tiny_checkpoint("ResNetProgressiveBackboneEncoder")
    reordered = dict(reversed(checkpoint["state_dict"].items()))
    assert load_checkpoint({**checkpoint, "state_dict": reordered}).fingerprint == model.fingerprint
    other = load_checkpoint(checkpoint, encoder_type="ResNetBackboneEncoder")
    assert other.fingerprint != model.fingerprint
    checkpoint["latent_avg"] = checkpoint["latent_avg"] + 1e-3
    assert load_checkpoint(checkpoint).fingerprint != model.fingerprint


def test_damaged_weights_are_detected_by_their_sha256(broken: Path) -> None:
    content = bytearray((broken / "model.safetensors").read_bytes())
    content[-5] ^= 1
    (broken / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match="does not have the sha256"):
        load_model(str(broken))


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ("nonsense", "is not JSON"),
        ('{"format": 99}', "bundle format 99, this version reads 1"),
        ("[]", "bundle format None"),
    ],
)
def test_a_record_of_another_format_is_refused(broken: Path, record: str, said: str) -> None:
    (broken / "model.json").write_text(record)
    with pytest.raises(ModelError, match=said):
        load_model(str(broken))


def test_a_record_without_its_architecture_is_refused(broken: Path) -> None:
    record = json.loads((broken / "model.json").read_text())
    del record["architecture"]["channels"]
    (broken / "model.json").write_text(json.dumps(record))
    with pytest.raises(ModelError, match="incomplete or wrong at 'channels'"):
        load_model(str(broken))


def test_unknown_encoder_type_lists_the_known_types(broken: Path) -> None:
    record = json.loads((broken / "model.json").read_text())
    record["architecture"]["encoder_type"] = "Nobody"
    (broken / "model.json").write_text(json.dumps(record))
    with pytest.raises(ModelError, match=r"unknown encoder_type 'Nobody' \(known: Backbone"):
        load_model(str(broken))


@pytest.mark.parametrize(
    ("entry", "value", "said"),
    [
        ("mapping_layers", 10**30, "mapping layers, expected at most 64"),
        ("channels", {"4": 8, "1073741824": 8}, "cannot have the resolutions"),
        ("encoder_arguments", {"input_channels": 6, "n_styles": 10**30}, "does not fit 8 px"),
        ("encoder_arguments", {"input_channels": -1, "n_styles": 4}, "of -1 channels"),
        ("encoder_arguments", {"input_channels": 10**9, "n_styles": 4}, "of 1000000000 channels"),
        ("input_size", [10**9, 10**9], "input is 1000000000x1000000000 px"),
        ("input_size", [256, 4096], "input is 256x4096 px"),
        ("input_size", [0, 0], "input is 0x0 px"),
        ("encoder_arguments", _COMPACT | {"input_size": 64}, "64 px does not fit an input"),
    ],
)
def test_a_record_with_impossible_sizes_is_refused(
    broken: Path, entry: str, value: object, said: str
) -> None:
    record = json.loads((broken / "model.json").read_text())
    record["architecture"][entry] = value
    (broken / "model.json").write_text(json.dumps(record))
    with pytest.raises(ModelError, match=said):
        load_model(str(broken))


def test_expanded_tensors_are_refused_before_they_are_copied() -> None:
    checkpoint = tiny_checkpoint()
    state = checkpoint["state_dict"] = dict(checkpoint["state_dict"])
    for key in ("decoder.input.input", "decoder.conv1.conv.weight"):
        shape = [200_000 if size in CHANNELS.values() else size for size in state[key].shape]
        state[key] = torch.zeros(1).expand(shape)
    with pytest.raises(ModelError, match=r"its tensors have \d{10,} bytes by their shapes"):
        load_checkpoint(checkpoint)


def test_deeply_nested_record_is_refused(broken: Path) -> None:
    (broken / "model.json").write_text("[" * 100_000)
    with pytest.raises(ModelError, match=r"model\.json is not JSON"):
        load_model(str(broken))


def test_complex_weights_are_refused() -> None:
    checkpoint = tiny_checkpoint()
    checkpoint["latent_avg"] = checkpoint["latent_avg"].to(torch.complex64)
    with pytest.raises(ModelError, match="latent_avg is not a plain tensor"):
        load_checkpoint(checkpoint)


def test_unknown_model_name_lists_the_known_names() -> None:
    with pytest.raises(ModelError, match=r"no model is called 'dmeo' \(known: "):
        load_model("dmeo")


@pytest.mark.parametrize("where", ["./nowhere/at-all", "nowhere.pt", "memory://models/nothing"])
def test_a_missing_model_file_is_named(where: str) -> None:
    with pytest.raises(ModelError, match=r"no model file at .*no"):
        load_model(where)


@pytest.mark.parametrize("name", ["cut", "cut.pt"])
def test_an_interrupted_download_is_not_reported_as_damage(name: str) -> None:
    cut_off.register()
    for path in ("cut.pt", "cut/model.json"):
        with fsspec.open(f"memory://models/{path}", "wb") as sink:
            torch.save(tiny_checkpoint(), sink)
    with pytest.raises(StorageError, match="reset by peer"):
        load_model(f"breaks://models/{name}")


@pytest.mark.parametrize("zipped", [True, False])
def test_disk_error_is_not_reported_as_damage(zipped: bool) -> None:
    sink = io.BytesIO()
    torch.save(tiny_checkpoint(), sink, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ConnectionResetError):
        read_checkpoint(cut_off.CutOff(sink.getvalue()), "cut.pt")


def test_architecture_round_trips_through_json(model: RestyleModel) -> None:
    record = json.loads(json.dumps(model.architecture.to_json()))
    assert Architecture.from_json(record) == model.architecture


def test_an_unknown_architecture_entry_is_refused(model: RestyleModel) -> None:
    with pytest.raises(KeyError, match="spin"):
        Architecture.from_json({**model.architecture.to_json(), "spin": 1})
