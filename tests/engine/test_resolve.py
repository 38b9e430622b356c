from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.refine_dataset import second_pass
from pipeline.config import JobConfig
from pipeline.engine.inverter import Inverter
from pipeline.engine.messages import Failure, ShardEnd, ShardTask
from pipeline.engine.resolve import make_recipe, resolved_config
from pipeline.engine.stages import Read
from pipeline.engine.stages.base import results
from pipeline.errors import ConfigError, FingerprintError, ModelError
from pipeline.inversion import StopRule
from pipeline.models import load_model, save_bundle
from pipeline.storage import list_shards
from pipeline.table import open_for_writing
from pipeline.table.spec import TableSpec, check_same

ConfigOf = Callable[..., JobConfig]


@pytest.fixture
def first_pass(config_of: ConfigOf, tmp_path: Path) -> JobConfig:
    """A table of two files a shard, both shards committed."""
    config = config_of(output=str(tmp_path / "first"), files_per_shard=2, prealigned=True)
    writer = open_for_writing(config.output, make_recipe(config).spec, part_size=2)
    for shard in list_shards(config.input, files_per_shard=2):
        source = dict.fromkeys(("source_uri", "source_sha256", "detail"), "")
        rejects = [
            {"key": name, "face_index": None, "reason": "no_face", **source} for name in shard.names
        ]
        part = writer.write_part(shard, 0, samples=2, latents=[], rejects=rejects)
        writer.commit_shard(shard, [part])
    return config


def test_codes_of_another_cut_of_the_input_are_refused(
    config_of: ConfigOf, first_pass: JobConfig, tmp_path: Path
) -> None:
    init = first_pass.output
    make_recipe(config_of(init=init, files_per_shard=2))
    with pytest.raises(ConfigError, match="files_per_shard '2', and this run has '3'"):
        make_recipe(config_of(init=init, where="key <> ''", files_per_shard=3))
    with pytest.raises(ConfigError, match="image_field 'one', and this run has 'png'"):
        make_recipe(config_of(init=init, files_per_shard=2, image_field="png"))
    with pytest.raises(ConfigError, match="image_column 'None', and this run has 'mask'"):
        make_recipe(config_of(init=init, files_per_shard=2, image_column="mask"))
    with pytest.raises(ConfigError, match=r"input '.*/images', and this run has '.*/other'"):
        make_recipe(config_of(init=init, files_per_shard=2, input=str(tmp_path / "other")))


def test_a_shard_that_changed_since_its_codes_were_found_fails(first_pass: JobConfig) -> None:
    """In silence it would give fewer samples: its new keys are none that a condition chose."""
    (shard, _) = list_shards(first_pass.input, files_per_shard=2)
    work = ShardTask(shard, 2, init=first_pass.output, where="true")
    (end,) = results(Read(), work)
    assert isinstance(end, ShardEnd)
    changed = replace(work, shard=replace(shard, etag="another"))
    (failure,) = results(Read(), changed)
    assert isinstance(failure, Failure)
    assert "changed since the table" in failure.error


def test_a_second_pass_reads_the_input_as_the_first_one_did(
    first_pass: JobConfig, tmp_path: Path
) -> None:
    config = second_pass(first_pass.output, {"output": str(tmp_path / "second")})
    assert config.layout() == first_pass.layout()
    make_recipe(config)


@pytest.mark.parametrize(("where", "limit"), [(None, 3), ("lpips > 0", 3)])
def test_a_second_pass_over_a_limited_table_has_its_limit(
    config_of: ConfigOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, limit: int
) -> None:
    """And an input by a relative path is found from anywhere."""
    monkeypatch.chdir(tmp_path)
    first = config_of(output="first", input="images", limit=3)
    open_for_writing(first.output, make_recipe(first).spec, part_size=2)
    table, other = str(tmp_path / "first"), tmp_path / "elsewhere"
    other.mkdir()
    monkeypatch.chdir(other)
    config = second_pass(table, {"output": "second", "where": where})
    assert (config.input, config.limit) == (str(tmp_path / "images"), limit)


def test_a_named_domain_changes_no_more_of_a_table_than_it_has_to(
    config_of: ConfigOf, tiny_bundle: str, tmp_path: Path
) -> None:
    folder = tmp_path / "custom"
    folder.mkdir()
    for path in Path(tiny_bundle).iterdir():
        text = path.read_bytes().replace(b'"domain": "faces"', b'"domain": "unknown"')
        (folder / path.name).write_bytes(text)

    def described(**settings: Any) -> TableSpec:
        return make_recipe(config_of(model=str(folder), identity=None, **settings)).spec

    with pytest.raises(ConfigError, match="add --domain faces"):
        described()
    earlier, faces = described(prealigned=True), described(domain="faces")
    assert described(domain="my_data").fingerprint == earlier.fingerprint
    assert described(prealigned=False).fingerprint == faces.fingerprint
    assert (faces.model["domain"], faces.config["domain"]) == ("faces", "faces")
    with pytest.raises(FingerprintError, match=r"as it was made: .*--identity none"):
        check_same("table", earlier, faces)
    with pytest.raises(ModelError, match=r"takes 64x64, and images of cars are cut to 192x256"):
        described(domain="cars")


def test_a_generators_file_is_inverted_by_optimisation(
    config_of: ConfigOf, tiny_bundle: str, tmp_path: Path
) -> None:
    model = load_model(tiny_bundle)
    generator = {"g_ema": model.generator.state_dict(), "latent_avg": model.latent_avg[0]}
    path = str(tmp_path / "generator.pt")
    torch.save(generator, path)
    with pytest.raises(ConfigError, match="generator alone, and --method restyle"):
        make_recipe(config_of(model=path, domain="faces"))
    given = {"model": path, "domain": "faces", "method": "optimize", "iterations": 1}
    recipe = make_recipe(config_of(**given))
    assert (recipe.alignment.output_size, recipe.alignment.prealigned) == ((256, 256), False)
    inverter = Inverter(recipe.inversion)
    assert inverter.model.fingerprint == recipe.spec.settings["model"]
    assert (inverter.model.domain, inverter.model.generator_alone) == ("faces", True)


def test_cars_are_taken_as_they_are(config_of: ConfigOf, tiny_bundle: str, tmp_path: Path) -> None:
    folder = tmp_path / "cars"
    folder.mkdir()
    for path in Path(tiny_bundle).iterdir():
        text = path.read_bytes().replace(b'"domain": "faces"', b'"domain": "cars"')
        (folder / path.name).write_bytes(text)
    recipe = make_recipe(config_of(model=str(folder), identity=None))
    assert recipe.alignment.prealigned
    assert recipe.inversion.identity == "none"
    with pytest.raises(ConfigError, match="no faces to align"):
        make_recipe(config_of(model=str(folder), prealigned=False))


def test_a_faster_arithmetic_makes_another_table(
    config_of: ConfigOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="--precision tf32 is of GPUs"):
        make_recipe(config_of(precision="tf32"))
    monkeypatch.setattr("pipeline.engine.resolve.in_cluster", lambda: True)
    exact, faster = (make_recipe(config_of(precision=name)) for name in ("float32", "tf32"))
    assert "precision" not in exact.spec.settings
    assert faster.spec.settings["precision"] == "tf32"
    assert faster.spec.fingerprint != exact.spec.fingerprint


def test_profiles_are_applied_in_new_tables_alone(
    config_of: ConfigOf, first_pass: JobConfig, tmp_path: Path
) -> None:
    new, old = (make_recipe(config_of(icc=icc)) for icc in ("apply", "ignore"))
    assert make_recipe(config_of()).alignment.icc == "apply"
    assert new.spec.settings["alignment"]["icc"] == "apply"
    # As tables were described before there was a choice: they are continued by --icc ignore.
    assert "icc" not in old.spec.settings["alignment"]
    assert old.spec.fingerprint != new.spec.fingerprint
    # A second pass sees the colours that the first one saw.
    assert second_pass(first_pass.output, {"output": str(tmp_path / "second")}).icc == "apply"


def test_a_second_pass_over_an_earlier_table_ignores_profiles(
    first_pass: JobConfig, tmp_path: Path
) -> None:
    path = Path(first_pass.output, "_table.json")
    document = json.loads(path.read_text())
    assert document["config"].pop("icc") == "apply"
    path.write_text(json.dumps(document))
    assert second_pass(first_pass.output, {"output": str(tmp_path / "second")}).icc == "ignore"


EARLIER_SEARCH = {"turns": "none", "search_pixels": 0, "check_below": 0.0}


def test_a_table_made_before_turns_goes_on_without_them(config_of: ConfigOf) -> None:
    old = make_recipe(config_of(**EARLIER_SEARCH)).spec
    assert not EARLIER_SEARCH.keys() & old.settings["alignment"].keys()
    assert "turn_deg" not in old.columns.latents_schema().names
    asked = make_recipe(config_of()).spec
    assert asked.columns.turn_deg
    with pytest.raises(FingerprintError) as refusal:
        check_same("table", old, asked)
    assert "turn_deg" not in str(refusal.value)
    told = "as it was made: --check-below 0 --search-pixels 0 --turns none"
    assert str(refusal.value).endswith(told)


def test_images_that_are_crops_are_searched_by_no_setting(config_of: ConfigOf) -> None:
    crops = make_recipe(config_of(prealigned=True))
    earlier = make_recipe(config_of(prealigned=True, **EARLIER_SEARCH))
    assert crops.spec.fingerprint == earlier.spec.fingerprint
    assert not crops.columns.turn_deg
    told = resolved_config(config_of(prealigned=True), crops)
    assert [told[name] for name in EARLIER_SEARCH] == [None, None, None]


@pytest.mark.parametrize("turns", ["auto", "none"])
def test_a_second_pass_searches_as_the_first_one_did(
    config_of: ConfigOf, tmp_path: Path, turns: str
) -> None:
    first = config_of(turns=turns, search_pixels=7, output=str(tmp_path / "first"))
    open_for_writing(first.output, make_recipe(first).spec, part_size=2)
    config = second_pass(first.output, {"output": str(tmp_path / "second")})
    assert (config.turns, config.search_pixels, config.check_below) == (turns, 7, 1.35)


def test_a_second_pass_over_an_earlier_table_searches_as_then(
    config_of: ConfigOf, tmp_path: Path
) -> None:
    first = config_of(output=str(tmp_path / "first"), **EARLIER_SEARCH)
    made = make_recipe(first).spec
    config = {name: value for name, value in made.config.items() if name not in EARLIER_SEARCH}
    open_for_writing(first.output, replace(made, config=config), part_size=2)
    again = second_pass(first.output, {"output": str(tmp_path / "second")})
    assert {name: getattr(again, name) for name in EARLIER_SEARCH} == EARLIER_SEARCH


def test_a_models_own_bound_decides_when_its_faces_stop(config_of: ConfigOf) -> None:
    given = make_recipe(config_of(steps="auto", stop_gain=0.02, stop_residual=0.5, max_steps=7))
    assert given.inversion.method.stop == StopRule(improvement=0.02, residual=0.5, max_steps=7)
    settings = json.loads(json.dumps(given.spec.to_dict(), allow_nan=False))["settings"]
    assert settings["method"]["stop"] == {"gain": 0.02, "residual": 0.5, "least": 1, "most": 7}
    default = make_recipe(config_of(steps="auto", max_steps=7))
    assert default.inversion.method.stop == StopRule(max_steps=7)
    assert default.spec.fingerprint != given.spec.fingerprint
    zero = make_recipe(config_of(steps="auto", stop_gain=0.0)).inversion.method.stop
    assert zero == StopRule(improvement=0.0)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"method": "optimize"}, {"steps": 5, "iterations": 300, "space": "w+", "seed": 0}),
        ({"method": "hybrid", "iterations": 3}, {"steps": 3, "distance_weight": 0.02}),
        (
            {"steps": "auto", "stop_gain": 0.1},
            {"steps": "auto", "max_steps": 10, "stop_gain": 0.1, "stop_residual": 1.0},
        ),
        ({"prealigned": True, "batch_size": 3}, {"fit": "stretch", "batch_size": 3}),
    ],
)
def test_what_a_setting_was_resolved_to_can_be_told(
    config_of: ConfigOf, settings: dict[str, Any], told: dict[str, Any]
) -> None:
    config = config_of(**settings)
    found = resolved_config(config, make_recipe(config))
    assert {name: found[name] for name in told} == told


def test_a_table_says_when_a_face_has_converged(config_of: ConfigOf) -> None:
    def told(**settings: object) -> str | None:
        return make_recipe(config_of(**settings)).spec.metrics.get("converged")

    assert "less than 0.02 and" in str(told(steps="auto", stop_gain=0.02))
    assert "less than 0.00167 and" in str(told(steps=3))
    assert told(method="optimize") is None


def test_help_tells_the_bounds_that_hold_by_default() -> None:
    told = {name: str(JobConfig.model_fields[name].description) for name in JobConfig.model_fields}
    assert f"(default {StopRule().improvement}, " in told["stop_gain"]
    assert f"(default {StopRule().residual:g})" in told["stop_residual"]


def test_a_bound_of_another_model_is_told(config_of: ConfigOf) -> None:
    borrowed = make_recipe(config_of(steps="auto"))
    assert "under 0.00167, which was calibrated on the demo model" in borrowed.treatment
    assert "pass it as --stop-gain" in borrowed.treatment
    for quiet in ({}, {"steps": "auto", "stop_gain": 0.01}, {"steps": "auto", "model": "demo"}):
        assert "calibrated" not in make_recipe(config_of(**quiet)).treatment


def test_rows_that_differ_are_no_start_in_w(config_of: ConfigOf, tmp_path: Path) -> None:
    model = load_model(config_of().model)
    with torch.no_grad():
        model.latent_avg[1].add_(1)
    save_bundle(model, str(tmp_path / "uneven"))
    with pytest.raises(ConfigError, match="rows that differ"):
        make_recipe(config_of(model=str(tmp_path / "uneven"), method="optimize", space="w"))


def test_a_gpu_that_is_not_there_is_refused_at_once(
    config_of: ConfigOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="no GPU"):
        make_recipe(config_of(device="cuda"))


def test_the_table_names_its_model_and_images_for_every_working_directory(
    config_of: ConfigOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(identity="none")
    folder = Path(config.model)
    monkeypatch.chdir(folder.parent)
    told = make_recipe(config_of(identity="none", model=f"./{folder.name}")).spec.config
    assert (told["model"], told["identity"]) == (str(folder), "none")
    assert Path(told["input"]).is_absolute()
