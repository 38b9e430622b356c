"""Official dictionaries and `.pt` files: accepted layouts, and messages about all others."""

from __future__ import annotations

import argparse
import collections
import io
import logging
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipeline.errors import ConfigError, ModelError
from pipeline.inversion import OptimizeSettings, optimize
from pipeline.inversion.methods import Method
from pipeline.models import load_checkpoint, load_model, save_bundle, treatment_for
from pipeline.models.checkpoint import read_checkpoint
from pipeline.models.safe_globals import plain
from tests.models.tiny import ALL_LEVELS, portrait, tiny_checkpoint

Checkpoint = dict[str, Any]


@pytest.fixture
def checkpoint() -> Checkpoint:
    """Return a valid official dictionary."""
    return tiny_checkpoint()


def saved(checkpoint: object, folder: Path) -> str:
    """Save `checkpoint` as a `.pt` file and return its path."""
    path = folder / "model.pt"
    torch.save(checkpoint, path)
    return str(path)


def test_sizes_are_read_from_weight_shapes(checkpoint: Checkpoint) -> None:
    model = load_checkpoint(checkpoint)
    assert (model.generator_size, model.n_styles, model.input_size) == (8, 4, (256, 256))
    assert (model.domain, model.input_channels) == ("faces", 6)
    assert not model.training


def test_options_may_be_a_dict_or_a_namespace(checkpoint: Checkpoint) -> None:
    as_dict = {**checkpoint, "opts": vars(checkpoint["opts"])}
    assert load_checkpoint(as_dict).fingerprint == load_checkpoint(checkpoint).fingerprint


def test_a_checkpoint_without_options_loads(checkpoint: Checkpoint) -> None:
    bare = load_checkpoint({**checkpoint, "opts": None}, encoder_type="BackboneEncoder")
    assert bare.fingerprint == load_checkpoint(checkpoint).fingerprint
    assert bare.domain == "unknown"


@pytest.mark.parametrize("other", [None, [], "restyle.pt", 3])
def test_an_object_that_is_not_a_dictionary_is_refused(other: object) -> None:
    with pytest.raises(ModelError, match=r"checkpoint: is a .*, expected the official dictionary"):
        load_checkpoint(other)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(512,), (1, 512)])
def test_one_average_row_is_repeated_for_all_styles(
    checkpoint: Checkpoint, shape: tuple[int, ...]
) -> None:
    row = torch.randn(512)
    model = load_checkpoint({**checkpoint, "latent_avg": row.reshape(shape)})
    assert torch.equal(model.latent_avg, row.expand(4, 512))


def test_car_models_have_a_wide_frame() -> None:
    model = load_checkpoint(tiny_checkpoint("ResNetBackboneEncoder", dataset_type="cars_encode"))
    assert (model.domain, model.input_size, model.frame_size) == ("cars", (192, 256), (6, 8))
    rows = torch.arange(8.0).reshape(1, 1, 8, 1).expand(1, 3, 8, 8)
    assert model.frame(rows)[0, 0, :, 0].tolist() == list(range(1, 7))


def test_pt_file_equals_its_dictionary(checkpoint: Checkpoint, tmp_path: Path) -> None:
    model = load_model(saved(checkpoint, tmp_path))
    assert model.fingerprint == load_checkpoint(checkpoint).fingerprint


def _without(key: str) -> Any:
    def change(checkpoint: Checkpoint) -> None:
        del checkpoint["state_dict"][key]

    return change


def _with(key: str, value: object) -> Any:
    def change(checkpoint: Checkpoint) -> None:
        checkpoint["state_dict"][key] = value

    return change


def _option(name: str, value: object) -> Any:
    def change(checkpoint: Checkpoint) -> None:
        setattr(checkpoint["opts"], name, value)

    return change


def _part(name: str, value: object) -> Any:
    def change(checkpoint: Checkpoint) -> None:
        checkpoint[name] = value

    return change


BLUR = "decoder.convs.0.conv.blur.kernel"
TO_RGB = "decoder.to_rgbs.0.conv.weight"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_without("encoder.body.3.res_layer.1.weight"), r"body\.3\.res_layer\.1\.weight' is miss"),
        (_without("encoder.input_layer.0.weight"), r"'input_layer\.0\.weight' is missing"),
        (_without("decoder.input.input"), r"'decoder\.input\.input' is missing"),
        (_without("decoder.noises.noise_2"), r"noise_2' is missing"),
        (
            _with("encoder.extra.weight", torch.zeros(2)),
            r"'encoder\.extra\.weight' does not belong",
        ),
        (_with(TO_RGB, torch.zeros(1, 3, 5, 1, 1)), r"shape \[1, 3, 5, 1, 1\], expected"),
        (_with(BLUR, torch.ones(4, 4)), r"not the binomial blur"),
        (_with("decoder.input.input", "text"), r"is a str, not a tensor"),
        (_option("output_size", 1024), r"output_size is 1024, but the decoder renders 8 px"),
        (_option("input_nc", 3), r"input_nc is 3, but the encoder takes 6"),
        (_option("encoder_type", "Encoder9000"), r"'Encoder9000' \(known: BackboneEncoder"),
        (
            _option("encoder_type", "BackboneEncoderUsingLastLayerIntoW"),
            r"IntoW' .*; encoders that return a single w are not",
        ),
        (_option("encoder_type", "ResNetBackboneEncoder"), r"'conv1\.weight' is missing for a Res"),
        (_option("encoder_type", "CompactEncoder"), r"'CompactEncoder' \(known: Backbone"),
        (_option("learn_in_w", True), r"learn_in_w"),
        (_part("latent_avg", None), r"no 'latent_avg'"),
        (_part("latent_avg", torch.zeros(9, 512)), r"latent_avg has shape \[9, 512\]"),
        (_part("state_dict", {}), r"no 'state_dict'"),
        (_part("opts", [1]), r"'opts' is a list"),
    ],
)
def test_each_mismatch_is_reported_in_one_line(
    checkpoint: Checkpoint, change: Any, said: str
) -> None:
    change(checkpoint)
    with pytest.raises(ModelError, match=said) as caught:
        load_checkpoint(checkpoint, source="psp.pt")
    assert str(caught.value).startswith("psp.pt: ")
    assert "\n" not in str(caught.value)


def test_missing_style_head_is_reported(checkpoint: Checkpoint) -> None:
    state = checkpoint["state_dict"]
    checkpoint["state_dict"] = {k: v for k, v in state.items() if ".styles.3." not in k}
    with pytest.raises(ModelError, match="3 style heads, a 8 px decoder takes 4"):
        load_checkpoint(checkpoint)


def test_a_missing_encoder_type_can_be_given(checkpoint: Checkpoint) -> None:
    del checkpoint["opts"].encoder_type
    with pytest.raises(
        ModelError,
        match="weights fit BackboneEncoder or ProgressiveBackboneEncoder: pass --encoder",
    ):
        load_checkpoint(checkpoint)
    model = load_checkpoint(checkpoint, encoder_type="BackboneEncoder")
    assert model.architecture.encoder_type == "BackboneEncoder"


def test_an_unambiguous_encoder_type_is_inferred() -> None:
    checkpoint = tiny_checkpoint("ResNetGradualStyleEncoder", channels=ALL_LEVELS)
    checkpoint["opts"] = {}
    model = load_checkpoint(checkpoint, domain="church")
    assert model.architecture.encoder_type == "ResNetGradualStyleEncoder"
    assert model.domain == "church"


def test_a_single_pass_model_may_lack_the_average_latent() -> None:
    checkpoint = tiny_checkpoint(
        "ResNetBackboneEncoder", input_channels=3, start_from_latent_avg=False
    )
    checkpoint["latent_avg"] = None
    model = load_checkpoint(checkpoint)
    assert model.latent_avg.eq(0).all()
    assert "zeros" in model.metadata["notes"]["latent_avg"]
    with pytest.raises(ModelError, match="no 'latent_avg'"):
        load_checkpoint({**tiny_checkpoint(input_channels=3), "latent_avg": None})


def test_unused_style_heads_are_dropped_as_by_e4e() -> None:
    wide = tiny_checkpoint("Encoder4Editing", input_channels=3, channels=ALL_LEVELS)
    lower = {key: shape for key, shape in ALL_LEVELS.items() if key < 32}
    exact = tiny_checkpoint("Encoder4Editing", input_channels=3, channels=lower)
    decoder = {k: v for k, v in exact["state_dict"].items() if k.startswith("decoder.")}
    encoder = {k: v for k, v in wide["state_dict"].items() if k.startswith("encoder.")}
    model = load_checkpoint({**wide, "state_dict": encoder | decoder, "opts": exact["opts"]})
    assert model.n_styles == 6
    assert torch.equal(model.latent_avg, wide["latent_avg"][:6])


@pytest.mark.parametrize("channels", [1, 19])
def test_encoders_of_sketches_and_labels_are_refused(channels: int) -> None:
    with pytest.raises(ModelError, match=f"takes {channels} channels.*cannot invert photos"):
        load_checkpoint(tiny_checkpoint("GradualStyleEncoder", input_channels=channels))


def test_a_truncated_file_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = Path(saved(checkpoint, tmp_path))
    path.write_bytes(path.read_bytes()[:10_000])
    with pytest.raises(ModelError, match="damaged, or not a PyTorch checkpoint"):
        load_model(str(path))


@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x04K\x01."])
def test_files_of_other_types_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"other\.pt"):
        load_model(str(path))


def test_a_decompression_bomb_is_refused(tmp_path: Path) -> None:
    sink = io.BytesIO()
    torch.save({"state_dict": {"a": torch.zeros(40 << 20)}}, sink)
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(sink) as plain, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name), compresslevel=1)
    assert path.stat().st_size < 1 << 20
    with pytest.raises(ModelError, match=r"its \d+ bytes unpack to 167\d{6}"):
        load_model(str(path))


def test_classes_outside_the_allow_list_are_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    checkpoint["opts"] = collections.Counter(a=1)
    checkpoint["sched"] = argparse.ArgumentParser  # a class that is on no list
    with pytest.raises(ModelError, match=r"it holds the class argparse\.ArgumentParser"):
        load_model(saved(checkpoint, tmp_path))


def test_a_pickled_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds a list"):
        load_model(saved([1, 2], tmp_path))


def test_an_empty_generator_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no 'state_dict'.*'g_ema'"):
        load_model(saved({"g_ema": {}}, tmp_path))


# --- other layouts that the official loaders accept


def _wrapped(checkpoint: Checkpoint) -> Checkpoint:
    """Return it with the keys of networks inside DataParallel and torch.compile."""
    state = checkpoint["state_dict"].items()
    encoder = {f"module.{key}": value for key, value in state if key.startswith("encoder.")}
    decoder = {
        key.replace("decoder.", "decoder._orig_mod.module."): value
        for key, value in state
        if key.startswith("decoder.")
    }
    return {**checkpoint, "state_dict": encoder | decoder}


def _with_others(checkpoint: Checkpoint) -> Checkpoint:
    """Return it with weights of other networks, and values that are not tensors."""
    others = {"lpips_loss.net.0.weight": torch.zeros(2), "step": 7, "latent_avg": torch.zeros(3)}
    return {**checkpoint, "state_dict": {**checkpoint["state_dict"], **others}}


def _bare(checkpoint: Checkpoint) -> Checkpoint:
    """Return its bare state dict with the average latent among the weights."""
    return {**checkpoint["state_dict"], "latent_avg": checkpoint["latent_avg"]}


def _of_numpy(checkpoint: Checkpoint) -> Checkpoint:
    """Return it with numpy numbers, a numpy average, and options that are paths."""
    options = argparse.Namespace(
        **vars(checkpoint["opts"]), exp_dir=Path("runs/a"), lr=np.float64(1e-4), best=np.int64(3)
    )
    options.output_size = np.int64(8)
    return {**checkpoint, "latent_avg": checkpoint["latent_avg"].numpy(), "opts": options}


@pytest.mark.parametrize("change", [_wrapped, _with_others, _bare, _of_numpy])
@pytest.mark.parametrize("as_file", [True, False])
def test_layouts_of_official_loaders_give_the_same_model(
    checkpoint: Checkpoint, change: Any, as_file: bool, tmp_path: Path
) -> None:
    given = change(checkpoint)
    place = saved(given, tmp_path) if as_file else given
    model = load_model(place, encoder_type="BackboneEncoder", domain="faces")
    assert model.fingerprint == load_checkpoint(checkpoint).fingerprint


def test_ignored_entries_are_reported_once(
    checkpoint: Checkpoint, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "pipeline.models"):
        model = load_checkpoint(_with_others(checkpoint), source="psp.pt")
    note = "ignored 3 entries outside encoder and decoder (lpips_loss.net.0.weight, step, ...)"
    assert model.metadata["notes"]["ignored"] == note
    assert caplog.messages == [f"psp.pt: {note}"]
    assert note in treatment_for(model).description


def test_safetensors_file_loads_as_a_state_dict(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = str(tmp_path / "psp.safetensors")
    save_file(_bare(checkpoint), path)
    with pytest.raises(ModelError, match="BackboneEncoder or ProgressiveBackboneEncoder"):
        load_model(path)
    model = load_model(path, encoder_type="BackboneEncoder")
    assert model.fingerprint == load_checkpoint(checkpoint).fingerprint
    save_file(load_model("demo").state_dict(), path)
    with pytest.raises(ModelError, match="weights of a bundle; give the bundle's folder"):
        load_model(path)
    Path(path).write_bytes(b"\0" * 100)
    with pytest.raises(ModelError, match=r"psp\.safetensors: damaged, or not a safetensors file"):
        load_model(path)


def test_duplicate_weight_names_are_refused(checkpoint: Checkpoint) -> None:
    state = checkpoint["state_dict"]
    state["module.decoder.input.input"] = state["decoder.input.input"]
    with pytest.raises(ModelError, match=r"holds 'decoder\.input\.input' twice"):
        load_checkpoint(checkpoint)


def test_numpy_and_path_objects_stay_inert_records(tmp_path: Path) -> None:
    content = {"path": Path("a"), "number": np.float32(0.5), "array": np.arange(3)}
    torch.save(content, tmp_path / "x.pt")
    with (tmp_path / "x.pt").open("rb") as file:
        content_read = read_checkpoint(file, "x.pt")
    assert {type(value).__name__ for value in content_read.values()} == {
        *("InertPath", "InertScalar", "InertArray"),
    }
    values = {name: plain(value) for name, value in content_read.items()}
    assert (values["path"], values["number"]) == ("a", 0.5)
    assert values["array"].tolist() == [0, 1, 2]


# --- the average latent


def _without_average(checkpoint: Checkpoint) -> Checkpoint:
    return {name: value for name, value in checkpoint.items() if name != "latent_avg"}


def test_average_latent_among_the_weights_is_used(checkpoint: Checkpoint) -> None:
    average = checkpoint["latent_avg"]
    inside = {**_without_average(checkpoint)}
    inside["state_dict"] = {**checkpoint["state_dict"], "latent_avg": average}
    model = load_checkpoint(inside)
    assert model.fingerprint == load_checkpoint(checkpoint).fingerprint
    assert model.metadata["notes"] == {}


def test_missing_average_latent_is_estimated_on_request(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.models.checkpoint.CODES", 3000)
    for lacking in (_without_average(checkpoint), {**checkpoint, "latent_avg": None}):
        with pytest.raises(ModelError, match="pass --estimate-latent-avg"):
            load_checkpoint(lacking)
    first, again = (load_checkpoint(lacking, estimate_latent_avg=True) for _ in range(2))
    assert first.fingerprint == again.fingerprint != load_checkpoint(checkpoint).fingerprint
    z = torch.randn(3000, 512, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        codes = first.generator.map_z(z)
    error = codes.std(dim=0) / len(codes) ** 0.5
    assert float((codes.mean(dim=0) - first.latent_avg[0]).abs().div(error).mean()) < 2
    assert first.latent_avg.std(dim=0).max() == 0
    assert "estimated from 100000 mapped z codes" in first.metadata["notes"]["latent_avg"]
    stored = load_checkpoint(checkpoint, estimate_latent_avg=True)
    assert stored.fingerprint == load_checkpoint(checkpoint).fingerprint


def test_estimating_needs_a_mapping_network(checkpoint: Checkpoint) -> None:
    state = checkpoint["state_dict"]
    lacking = _without_average(checkpoint)
    lacking["state_dict"] = {k: v for k, v in state.items() if "decoder.style" not in k}
    with pytest.raises(ModelError, match="no mapping network"):
        load_checkpoint(lacking, estimate_latent_avg=True)


# --- generators alone


def test_a_generator_alone_supports_only_optimisation(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    state = checkpoint["state_dict"].items()
    generator = {key[8:]: value for key, value in state if key.startswith("decoder.")}
    content = {"g_ema": generator, "latent_avg": checkpoint["latent_avg"][0]}
    torch.save(content, tmp_path / "stylegan2-ffhq-config-f.pt")
    model = load_model(str(tmp_path / "stylegan2-ffhq-config-f.pt"))
    assert (model.domain, model.generator_size, model.generator_alone) == ("faces", 8, True)
    with pytest.raises(ModelError, match="pass --estimate-latent-avg"):
        load_checkpoint({"g_ema": generator})
    for name in ("restyle", "encoder", "hybrid"):
        with pytest.raises(ConfigError, match=f"generator alone, and --method {name} .*optimize"):
            Method(name).check(model)
    Method("hybrid").check(model, started=True)
    Method("optimize").check(model)
    save_bundle(model, str(tmp_path / "bundle"))
    model = load_model(str(tmp_path / "bundle"))
    result = optimize(
        model,
        portrait(),
        seeds=[1],
        settings=OptimizeSettings(iterations=2, lpips_weight=0, spread=0.1),
        steps=2,
    )
    assert result.w_plus.shape == (1, 2, 4, 512)
    bare = load_checkpoint({**generator, "latent_avg": checkpoint["latent_avg"][0]})
    assert bare.fingerprint == model.fingerprint
