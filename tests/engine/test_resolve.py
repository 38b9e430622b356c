from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.refine_dataset import second_pass
from pipeline.choices import EARLIER_SEARCH
from pipeline.config import JobConfig
from pipeline.engine.inverter import Inverter
from pipeline.engine.messages import Failure, ShardEnd, ShardTask
from pipeline.engine.plan import make_plan
from pipeline.engine.resolve import SAMPLES_PER_PART, resolve_job, resolved_config
from pipeline.engine.stages import Read
from pipeline.engine.stages.base import results
from pipeline.errors import ConfigError, FingerprintError, ModelError
from pipeline.inversion import StopRule
from pipeline.models import load_model, save_bundle
from pipeline.storage import list_shards
from pipeline.table import open_for_writing
from pipeline.table.spec import TableSpec, check_same
from tests.tiny_bundle import write_tiny_bundle

ConfigOf = Callable[..., JobConfig]


@pytest.fixture
def first_pass(config_of: ConfigOf, tmp_path: Path) -> JobConfig:
    """A table of two files a shard, both shards committed."""
    config = config_of(output=str(tmp_path / "first"), files_per_shard=2, prealigned=True)
    writer = open_for_writing(config.output, resolve_job(config).spec, part_size=2)
    for shard in list_shards(config.input, files_per_shard=2):
        source = dict.fromkeys(("source_uri", "source_sha256", "detail"), "")
        rejects = [
            {"key": name, "face_index": None, "reason": "no_face", **source} for name in shard.names
        ]
        part = writer.write_part(shard, 0, samples=2, latents=[], rejects=rejects)
        writer.commit_shard(shard, [part])
    return config


def test_codes_of_another_sharding_are_refused(
    config_of: ConfigOf, first_pass: JobConfig, tmp_path: Path
) -> None:
    init = first_pass.output
    resolve_job(config_of(init=init, files_per_shard=2))
    with pytest.raises(ConfigError, match="files_per_shard '2', and this run has '3'"):
        resolve_job(config_of(init=init, where="key <> ''", files_per_shard=3))
    with pytest.raises(ConfigError, match="image_field 'one', and this run has 'png'"):
        resolve_job(config_of(init=init, files_per_shard=2, image_field="png"))
    with pytest.raises(ConfigError, match="image_column 'None', and this run has 'mask'"):
        resolve_job(config_of(init=init, files_per_shard=2, image_column="mask"))
    with pytest.raises(ConfigError, match=r"input '.*/images', and this run has '.*/other'"):
        resolve_job(config_of(init=init, files_per_shard=2, input=str(tmp_path / "other")))


def test_a_shard_changed_since_its_codes_fails(first_pass: JobConfig) -> None:
    """Otherwise it would silently give fewer samples: no condition chose its new keys."""
    (shard, _) = list_shards(first_pass.input, files_per_shard=2)
    work = ShardTask(shard, 2, init=first_pass.output, where="true")
    (end,) = results(Read(), work)
    assert isinstance(end, ShardEnd)
    changed = replace(work, shard=replace(shard, etag="another"))
    (failure,) = results(Read(), changed)
    assert isinstance(failure, Failure)
    assert "changed since the table" in failure.error


def test_a_second_pass_reads_the_same_input(first_pass: JobConfig, tmp_path: Path) -> None:
    config = second_pass(first_pass.output, {"output": str(tmp_path / "second")})
    assert config.layout() == first_pass.layout()
    resolve_job(config)


@pytest.mark.parametrize(("where", "limit"), [(None, 3), ("lpips > 0", 3)])
def test_a_second_pass_keeps_the_limit(
    config_of: ConfigOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, limit: int
) -> None:
    """And an input by a relative path is found from anywhere."""
    monkeypatch.chdir(tmp_path)
    first = config_of(output="first", input="images", limit=3)
    open_for_writing(first.output, resolve_job(first).spec, part_size=2)
    table, other = str(tmp_path / "first"), tmp_path / "elsewhere"
    other.mkdir()
    monkeypatch.chdir(other)
    config = second_pass(table, {"output": "second", "where": where})
    assert (config.input, config.limit) == (str(tmp_path / "images"), limit)


def test_a_smaller_model_takes_the_first_rows(
    config_of: ConfigOf, first_pass: JobConfig, tiny_bundle: str, tmp_path: Path
) -> None:
    larger = write_tiny_bundle(str(tmp_path / "larger"), size=128)
    job = resolve_job(config_of(bootstrap=larger))
    assert (job.spec.columns.n_styles, job.inversion.first) == (10, larger)
    with pytest.raises(ConfigError, match=r"\(n_styles 12\) cannot refine .* \(n_styles 10\)"):
        resolve_job(config_of(model=larger, bootstrap=tiny_bundle))
    with pytest.raises(ConfigError, match="codes of 10 rows, the model 'tiny' takes 12"):
        resolve_job(config_of(model=larger, init=first_pass.output, files_per_shard=2))


def test_a_named_domain_keeps_the_fingerprint(
    config_of: ConfigOf, tiny_bundle: str, tmp_path: Path
) -> None:
    folder = tmp_path / "custom"
    folder.mkdir()
    for path in Path(tiny_bundle).iterdir():
        text = path.read_bytes().replace(b'"domain": "faces"', b'"domain": "unknown"')
        (folder / path.name).write_bytes(text)

    def described(**settings: Any) -> TableSpec:
        return resolve_job(config_of(model=str(folder), identity=None, **settings)).spec

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
        resolve_job(config_of(model=path, domain="faces"))
    given = {"model": path, "domain": "faces", "method": "optimize", "iterations": 1}
    job = resolve_job(config_of(**given))
    assert (job.alignment.output_size, job.alignment.prealigned) == ((256, 256), False)
    inverter = Inverter(job.inversion)
    assert inverter.model.fingerprint == job.spec.settings["model"]
    assert (inverter.model.domain, inverter.model.generator_alone) == ("faces", True)


def test_cars_are_taken_as_they_are(config_of: ConfigOf, tiny_bundle: str, tmp_path: Path) -> None:
    folder = tmp_path / "cars"
    folder.mkdir()
    for path in Path(tiny_bundle).iterdir():
        text = path.read_bytes().replace(b'"domain": "faces"', b'"domain": "cars"')
        (folder / path.name).write_bytes(text)
    job = resolve_job(config_of(model=str(folder), identity=None))
    assert job.alignment.prealigned
    assert job.inversion.identity == "none"
    with pytest.raises(ConfigError, match="no faces to align"):
        resolve_job(config_of(model=str(folder), prealigned=False))


def test_a_faster_arithmetic_makes_another_table(
    config_of: ConfigOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="--precision tf32 needs a GPU"):
        resolve_job(config_of(precision="tf32"))
    monkeypatch.setattr("pipeline.engine.resolve.in_cluster", lambda: True)
    exact, faster = (resolve_job(config_of(precision=name)) for name in ("float32", "tf32"))
    assert "precision" not in exact.spec.settings
    assert faster.spec.settings["precision"] == "tf32"
    assert faster.spec.fingerprint != exact.spec.fingerprint
    known = (resolve_job(config_of(device=device)) for device in ("cpu", "auto", "cuda"))
    assert [job.inversion.precision for job in known] == ["float32", "float32", "bfloat16"]


def test_an_older_table_names_the_flags_that_continue_it(
    config_of: ConfigOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tables made before have neither setting: float32, and the identity of every step."""
    monkeypatch.setattr("pipeline.engine.resolve.in_cluster", lambda: True)
    flags = {"identity": "dlib", "device": "cuda"}
    new = resolve_job(config_of(**flags)).spec
    old = resolve_job(config_of(**flags, precision="float32", identity_steps="all")).spec
    assert new.settings["identity_steps"] == "best"
    assert not {"precision", "identity_steps"} & {*old.settings}
    assert new.config["precision"] == "bfloat16", "what was resolved"
    with pytest.raises(FingerprintError) as refusal:
        check_same("t", old, new)
    assert "--identity-steps all --precision float32" in str(refusal.value)


def test_identity_steps_do_not_matter_without_identity(config_of: ConfigOf) -> None:
    for settings in ({"identity": "none"}, {"identity": "dlib", "steps": 1}):
        assert "identity_steps" not in resolve_job(config_of(**settings)).spec.settings
    by_identity = config_of(identity="dlib", best_step_by="id_similarity")
    assert resolve_job(by_identity).inversion.identity_steps == "all"


def test_profiles_are_applied_in_new_tables_alone(
    config_of: ConfigOf, first_pass: JobConfig, tmp_path: Path
) -> None:
    new, old = (resolve_job(config_of(icc=icc)) for icc in ("apply", "ignore"))
    assert resolve_job(config_of()).alignment.icc == "apply"
    assert new.spec.settings["alignment"]["icc"] == "apply"
    # As tables were described before there was a choice: they are continued by --icc ignore.
    assert "icc" not in old.spec.settings["alignment"]
    assert old.spec.fingerprint != new.spec.fingerprint
    # A second pass sees the colours that the first one saw.
    assert second_pass(first_pass.output, {"output": str(tmp_path / "second")}).icc == "apply"


def test_refining_an_earlier_table_ignores_profiles(first_pass: JobConfig, tmp_path: Path) -> None:
    path = Path(first_pass.output, "_table.json")
    document = json.loads(path.read_text())
    assert document["config"].pop("icc") == "apply"
    path.write_text(json.dumps(document))
    assert second_pass(first_pass.output, {"output": str(tmp_path / "second")}).icc == "ignore"


def test_an_earlier_table_continues_without_turns(config_of: ConfigOf) -> None:
    old = resolve_job(config_of(**EARLIER_SEARCH)).spec
    assert not EARLIER_SEARCH.keys() & old.settings["alignment"].keys()
    assert "turn_deg" not in old.columns.latents_schema().names
    args = resolve_job(config_of()).spec
    assert args.columns.turn_deg
    with pytest.raises(FingerprintError) as refusal:
        check_same("table", old, args)
    assert "turn_deg" not in str(refusal.value)
    expected = "as it was made: --check-below 0 --coarse-side 0 --search-pixels 0 --turns none"
    assert str(refusal.value).endswith(expected)


def test_search_settings_do_not_apply_to_crops(config_of: ConfigOf) -> None:
    crops = resolve_job(config_of(prealigned=True))
    earlier = resolve_job(config_of(prealigned=True, **EARLIER_SEARCH))
    assert crops.spec.fingerprint == earlier.spec.fingerprint
    assert not crops.spec.columns.turn_deg
    values = resolved_config(config_of(prealigned=True), crops)
    assert {values[name] for name in EARLIER_SEARCH} == {None}


def test_a_table_of_all_faces_has_no_coarse_copy(config_of: ConfigOf) -> None:
    """Such a search begins with a large copy: tables made before continue with the defaults."""
    job = resolve_job(config_of(faces="all"))
    assert "coarse_side" not in job.spec.settings["alignment"]
    assert resolved_config(config_of(faces="all"), job)["coarse_side"] is None


def test_identities_are_kept_where_they_are_measured(config_of: ConfigOf) -> None:
    def keeps(**settings: Any) -> bool:
        job = resolve_job(config_of(**settings))
        assert job.inversion.keep_identity == job.spec.columns.identity
        return job.spec.columns.identity

    assert keeps(identity="dlib")
    assert not keeps()
    assert not keeps(identity="dlib", keep_identity=False)
    assert not resolve_job(
        config_of(identity="dlib", keep_columns="Identity"), {"Identity": "int64"}
    ).spec.columns.identity
    with pytest.raises(ConfigError, match="--keep-identity needs an identity network: add --ident"):
        resolve_job(config_of(identity=None, domain="my_data", keep_identity=True))


def test_a_table_without_identities_continues_without(config_of: ConfigOf) -> None:
    """A table that was made before the column existed is continued by the command that made it."""
    earlier = resolve_job(config_of(identity="dlib", keep_identity=False)).spec
    assert "identity" not in earlier.to_dict()["columns"]
    created = open_for_writing(config_of().output, earlier, part_size=2)
    again = resolve_job(config_of(identity="dlib"))
    check_same("table", created.spec, again.spec)
    assert not again.inversion.keep_identity
    with pytest.raises(FingerprintError) as refusal:
        check_same(
            "table",
            created.spec,
            resolve_job(config_of(identity="dlib", keep_identity=True)).spec,
        )
    assert str(refusal.value).endswith("to continue it as it was made: --no-keep-identity")


@pytest.mark.parametrize("turns", ["auto", "none"])
def test_a_second_pass_searches_like_the_first(
    config_of: ConfigOf, tmp_path: Path, turns: str
) -> None:
    first = config_of(turns=turns, search_pixels=7, output=str(tmp_path / "first"))
    open_for_writing(first.output, resolve_job(first).spec, part_size=2)
    config = second_pass(first.output, {"output": str(tmp_path / "second")})
    assert (config.turns, config.search_pixels, config.check_below) == (turns, 7, 1.35)


def test_refining_an_earlier_table_searches_as_then(config_of: ConfigOf, tmp_path: Path) -> None:
    first = config_of(output=str(tmp_path / "first"), **EARLIER_SEARCH)
    created = resolve_job(first).spec
    config = {name: value for name, value in created.config.items() if name not in EARLIER_SEARCH}
    open_for_writing(first.output, replace(created, config=config), part_size=2)
    again = second_pass(first.output, {"output": str(tmp_path / "second")})
    assert {name: getattr(again, name) for name in EARLIER_SEARCH} == EARLIER_SEARCH


def test_parts_fit_the_device_or_the_table(config_of: ConfigOf) -> None:
    def part_size(**settings: object) -> int:
        return resolve_job(config_of(**{"device": "cpu", "part_size": None} | settings)).part_size

    assert (part_size(), part_size(part_size=7)) == (SAMPLES_PER_PART["cpu"], 7)
    writer = make_plan(config_of(part_size=3)).writer
    assert (part_size(), part_size(part_size=7), writer.part_size) == (3, 7, 3)
    resumed = make_plan(config_of(part_size=None)).writer
    assert resumed.part_size == 3
    path = Path(config_of().output, "_table.json")
    for recorded in ("3", 0, None):
        description = json.loads(path.read_text())
        description["config"]["part_size"] = recorded
        path.write_text(json.dumps(description))
        assert part_size() == SAMPLES_PER_PART["cuda"], "as tables had before it was recorded"


def test_help_names_the_default_part_sizes() -> None:
    said = "{cuda}, or {cpu} where CPUs invert".format(**SAMPLES_PER_PART)
    assert said in str(JobConfig.model_fields["part_size"].description)


def test_stop_bounds_come_from_the_config(config_of: ConfigOf) -> None:
    given = resolve_job(config_of(steps="auto", stop_gain=0.02, stop_residual=0.5, max_steps=7))
    assert given.inversion.method.stop == StopRule(improvement=0.02, residual=0.5, max_steps=7)
    settings = json.loads(json.dumps(given.spec.to_dict(), allow_nan=False))["settings"]
    assert settings["method"]["stop"] == {"gain": 0.02, "residual": 0.5, "least": 1, "most": 7}
    default = resolve_job(config_of(steps="auto", max_steps=7))
    assert default.inversion.method.stop == StopRule(max_steps=7)
    assert default.spec.fingerprint != given.spec.fingerprint
    zero = resolve_job(config_of(steps="auto", stop_gain=0.0)).inversion.method.stop
    assert zero == StopRule(improvement=0.0)


@pytest.mark.parametrize(
    ("settings", "expected"),
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
def test_resolved_settings_name_every_value(
    config_of: ConfigOf, settings: dict[str, Any], expected: dict[str, Any]
) -> None:
    config = config_of(**settings)
    result = resolved_config(config, resolve_job(config))
    assert {name: result[name] for name in expected} == expected


def test_a_table_says_when_a_face_has_converged(config_of: ConfigOf) -> None:
    def definition(**settings: object) -> str | None:
        return resolve_job(config_of(**settings)).spec.metrics.get("converged")

    assert "less than 0.02 and" in str(definition(steps="auto", stop_gain=0.02))
    assert "less than 0.00167 and" in str(definition(steps=3))
    assert definition(method="optimize") is None


def test_help_names_the_default_bounds() -> None:
    descriptions = {
        name: str(JobConfig.model_fields[name].description) for name in JobConfig.model_fields
    }
    assert f"(default {StopRule().improvement}, " in descriptions["stop_gain"]
    assert f"(default {StopRule().residual:g})" in descriptions["stop_residual"]


def test_the_stop_bound_of_another_model_warns(config_of: ConfigOf) -> None:
    borrowed = resolve_job(config_of(steps="auto"))
    assert "under 0.00167, which was calibrated on the demo model" in borrowed.treatment
    assert "pass it as --stop-gain" in borrowed.treatment
    for quiet in ({}, {"steps": "auto", "stop_gain": 0.01}, {"steps": "auto", "model": "demo"}):
        assert "calibrated" not in resolve_job(config_of(**quiet)).treatment


def test_rows_that_differ_are_no_start_in_w(config_of: ConfigOf, tmp_path: Path) -> None:
    model = load_model(config_of().model)
    with torch.no_grad():
        model.latent_avg[1].add_(1)
    save_bundle(model, str(tmp_path / "uneven"))
    with pytest.raises(ConfigError, match="rows that differ"):
        resolve_job(config_of(model=str(tmp_path / "uneven"), method="optimize", space="w"))


def test_a_missing_gpu_is_refused_at_once(
    config_of: ConfigOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="no GPU"):
        resolve_job(config_of(device="cuda"))


def test_the_table_holds_absolute_paths(
    config_of: ConfigOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(identity="none")
    folder = Path(config.model)
    monkeypatch.chdir(folder.parent)
    config = resolve_job(config_of(identity="none", model=f"./{folder.name}")).spec.config
    assert (config["model"], config["identity"]) == (str(folder), "none")
    assert Path(config["input"]).is_absolute()
