from __future__ import annotations

from pathlib import Path

import fsspec
import pytest
import yaml

from pipeline.config import JobConfig, load_config
from pipeline.config_loading import read_config_file
from pipeline.errors import ConfigError, InputError, StorageError
from tests.storage import cut_off

BOTH = {"input": "in", "output": "out"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "run.yaml"


def refusal(file: Path | None = None, **flags: object) -> str:
    with pytest.raises(ConfigError) as error:
        load_config(str(file) if file else None, BOTH | flags)
    text = str(error.value)
    assert "\n" not in text
    return text


def test_file_supplies_settings_without_a_flag(file: Path) -> None:
    file.write_text("input: s3://bucket/photos\nsteps: 3\nprealigned: true\n")
    config = load_config(str(file), {"output": "out", "steps": None})
    assert (config.input, config.output) == ("s3://bucket/photos", "out")
    assert (config.steps, config.prealigned, config.part_size) == (3, True, None)


def test_flags_override_the_file(file: Path) -> None:
    file.write_text("input: a\noutput: b\nsteps: 3\nprealigned: true\nlimit: 5\n")
    config = load_config(str(file), {"output": "c", "steps": "7", "prealigned": False})
    assert (config.input, config.output, config.steps) == ("a", "c", 7)
    assert (config.prealigned, config.limit) == (False, 5)


@pytest.mark.parametrize(
    ("typo", "meant"), [("stepz", "steps"), ("part-size", "part_size"), ("modell", "model")]
)
def test_unknown_setting_suggests_the_nearest_name(file: Path, typo: str, meant: str) -> None:
    file.write_text(f"{typo}: 3\n")
    assert refusal(file) == f"{file}:1: unknown setting '{typo}'; did you mean '{meant}'?"


def test_dissimilar_setting_is_refused_without_a_suggestion() -> None:
    assert refusal(xyzzy=1) == "unknown setting 'xyzzy'"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", "many"),
        ("steps", 0),
        ("steps", 101),
        ("faces", "some"),
        ("part_size", 2.5),
        ("limit", 0),
        ("prealigned", "maybe"),
        ("image_timeout", "-1"),
        ("image_timeout", "inf"),
        ("device", "tpu"),
        ("input", ["a", "b"]),
        ("min_face", None),
        ("min_face", True),
        ("limit", True),
        ("steps", True),
        ("part_size", False),
    ],
)
def test_invalid_value_is_reported_with_its_line(file: Path, name: str, value: object) -> None:
    file.write_text(yaml.safe_dump(BOTH | {name: value}, sort_keys=False))
    with pytest.raises(ConfigError) as error:
        load_config(str(file), {})
    line = {"input": 1, "output": 2}.get(name, 3)
    message = str(error.value)
    assert message.startswith(f"{file}:{line}: {name}: ")
    assert f"(got {value!r})" in message


def test_wrong_flag_that_overrides_the_file_is_named(file: Path) -> None:
    file.write_text("max_steps: 3\nsteps: auto\n")
    assert refusal(file, max_steps="0").startswith("--max-steps: input should be greater")
    file.write_text("steps: auto\n# a comment\n\nmax_steps: 0\nstop_gain: 9\n")
    first, second = refusal(file).split("; ")
    assert first.startswith(f"{file}:4: max_steps: input should be greater")
    assert second.startswith(f"{file}:5: stop_gain: input should be less")
    assert "--max-steps: " in refusal(max_steps="0", steps="auto"), "by its flag without a file"


def test_incompatible_settings_are_named_as_flags() -> None:
    for flags in ({"seed": 1}, {"space": "w"}, {"bootstrap_steps": 1}, {"distance_weight": 0.1}):
        (name,) = flags
        assert refusal(**flags).startswith("--" + name.replace("_", "-")), refusal(**flags)


def test_vectors_need_an_identity_network() -> None:
    assert "--keep-identity needs an identity network" in refusal(
        identity="none", keep_identity=True
    )


def test_duplicate_setting_is_reported_with_its_line(file: Path) -> None:
    file.write_text("limit: 3\nsteps: 2\nlimit: 4\n")
    assert refusal(file).endswith("line 3: 'limit' is set twice")


def test_unreadable_yaml_value_is_reported_with_its_line(file: Path) -> None:
    file.write_text("steps: 2\nlimit: 2024-13-45\n")
    assert refusal(file).startswith(f"{file}:2: holds a value that cannot be read: month")


@pytest.mark.parametrize("name", ["input", "output", "model", "init", "bootstrap", "identity"])
def test_empty_path_is_reported_with_its_flag(name: str) -> None:
    with pytest.raises(InputError, match=f"^--{name}: an empty path"):
        load_config(None, BOTH | {name: " "})


def test_accepted_words_are_listed_for_a_wrong_number() -> None:
    assert refusal(steps="many").endswith("as an integer, or 'auto' (got 'many')")
    assert refusal(faces="some") == "--faces: input should be 'largest' or 'all' (got 'some')"


def test_recorded_steps_cannot_exceed_iterations() -> None:
    message = "the code cannot be recorded 4 times in 3 iterations: lower --steps"
    assert refusal(method="optimize", steps=4, iterations=3).endswith(message)
    limited = load_config(None, BOTH | {"method": "hybrid", "iterations": 3})
    assert (limited.step_count, limited.iteration_count) == (3, 3)
    default = load_config(None, BOTH | {"method": "optimize"})
    assert (default.step_count, default.iteration_count) == (5, 300)


@pytest.mark.parametrize("name", ["max_steps", "stop_gain", "stop_residual"])
def test_stop_settings_need_automatic_steps(name: str) -> None:
    message = f"--{name.replace('_', '-')} is for --steps auto"
    assert refusal(**{name: 1}) == refusal(steps=5, **{name: 1}) == message
    assert getattr(load_config(None, BOTH | {"steps": "auto", name: 1}), name) == 1


def test_stop_gain_of_zero_counts_as_given() -> None:
    assert refusal(stop_gain=0.0) == "--stop-gain is for --steps auto"
    config = load_config(None, BOTH | {"steps": "auto", "stop_gain": "-1e-05"})
    assert config.stop_gain == -1e-05


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("stop_gain", "inf", "finite number"),
        ("stop_gain", "nan", "finite number"),
        ("stop_gain", "5", "less than or equal to 4"),
        ("stop_gain", "-5", "greater than or equal to -4"),
        ("stop_residual", "0", "greater than 0"),
        ("stop_residual", "inf", "finite number"),
    ],
)
def test_impossible_stop_bounds_are_refused(name: str, value: str, why: str) -> None:
    text = refusal(steps="auto", **{name: value})
    assert text.startswith(f"--{name.replace('_', '-')}: ")
    assert why in text
    assert text.endswith(f"(got {value!r})")


def test_all_wrong_settings_are_reported_together() -> None:
    text = refusal(steps=0, stepz=1, faces="some")
    assert [word in text for word in ("--steps: ", "'stepz'", "--faces: ")] == [True] * 3


def test_missing_setting_says_how_to_give_it() -> None:
    with pytest.raises(ConfigError) as error:
        load_config(None, {"input": "in"})
    message = "--output is required: pass it, or put 'output' into the config file"
    assert str(error.value) == message


def test_missing_config_file_is_named(file: Path) -> None:
    assert refusal(file).startswith(f"cannot read the config file '{file}': ")


@pytest.mark.parametrize("content", [b"steps: [3", b"a: b: c", b"\x00", b"limit: 3\nlimit: 4"])
def test_invalid_yaml_is_refused(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    assert "is not valid YAML" in refusal(file)


def test_binary_config_file_is_refused(file: Path) -> None:
    file.write_bytes(b"\xff\xfe\x00\x80")
    assert str(file) in refusal(file)


@pytest.mark.parametrize(("content", "kind"), [("- steps", "list"), ("steps", "str")])
def test_config_file_must_be_a_mapping(file: Path, content: str, kind: str) -> None:
    file.write_text(content)
    assert f"must hold 'name: value' lines, got {kind}" in refusal(file)


@pytest.mark.parametrize("content", ["", "# steps: 3\n", "---\n"])
def test_empty_config_file_gives_the_defaults(file: Path, content: str) -> None:
    file.write_text(content)
    assert load_config(str(file), BOTH) == load_config(None, BOTH)


@pytest.mark.parametrize(
    ("name", "kind"), [("1", "int"), ("~", "null"), ("yes", "bool"), ("2024-01-01", "timestamp")]
)
def test_setting_names_must_be_text(file: Path, name: str, kind: str) -> None:
    file.write_text(f"steps: 3\n{name}: 2\n")
    message = f"{file}:2: setting names must be text, and '{name}' is of YAML's type {kind}"
    assert message in refusal(file)


def test_yaml_cannot_construct_python_objects(file: Path) -> None:
    file.write_text("steps: !!python/object/apply:os.getpid []\n")
    assert "is not valid YAML" in refusal(file)


@pytest.mark.parametrize("name", ["input", "output", "model", "identity"])
@pytest.mark.parametrize("uri", ["s3://key:secret@bucket/x", "https://host/x?X-Amz-Signature=1"])
def test_uri_with_credentials_is_refused_without_repeating_it(name: str, uri: str) -> None:
    with pytest.raises(InputError) as error:
        load_config(None, BOTH | {name: uri})
    assert "secret@" not in str(error.value)
    assert "Signature" not in str(error.value)


def test_a_config_cannot_be_changed() -> None:
    config = JobConfig(**BOTH)
    with pytest.raises(ValueError, match="frozen"):
        config.steps = 3  # type: ignore[misc]


def test_every_setting_is_described() -> None:
    assert all(field.description for field in JobConfig.model_fields.values())


def test_config_file_is_read_from_any_storage() -> None:
    with fsspec.open("memory://configs/run.yaml", "w") as sink:
        sink.write("steps: 2\n")
    assert read_config_file("memory://configs/run.yaml")[0] == {"steps": 2}


def test_storage_failure_of_a_config_file_is_retryable() -> None:
    cut_off.register()
    with fsspec.open("memory://configs/cut.yaml", "w") as sink:
        sink.write("steps: 2\n")
    with pytest.raises(StorageError, match="reset by peer"):
        read_config_file("breaks://configs/cut.yaml")
    with pytest.raises(ConfigError, match="cannot read the config file"):
        read_config_file("breaks://configs/none.yaml")


@pytest.mark.parametrize(
    "value",
    [
        *("2024-13-45", "9" * 5000, "!!bool maybe", "!!timestamp soon", "[" * 3000 + "]" * 3000),
        "1" + ":59" * 400 + ".5",
    ],
)
def test_every_unreadable_yaml_value_is_refused(file: Path, value: str) -> None:
    file.write_text(f"steps: {value}\n")
    assert "holds a value that cannot be read" in refusal(file)


def multiplied(lines: int, form: str) -> str:
    """Return YAML in which each line refers to the line before nine times."""
    nine = [", ".join([f"*x{line - 1}"] * 9) for line in range(lines)]
    more = [f"x{line}: &x{line} {form % nine[line]}" for line in range(1, lines)]
    return "\n".join(["x0: &x0 {a: 1}", *more, f"steps: *x{lines - 1}\n"])


def test_small_numbers_of_aliases_are_accepted(file: Path) -> None:
    file.write_text(multiplied(3, "[%s]"))
    assert "(got [[...], [...], [...], [...], [...], [...], ...])" in refusal(file)


@pytest.mark.parametrize("form", ["[%s]", "{<<: [%s]}", "{? [%s] : 1}"])
def test_yaml_expansion_bombs_are_refused(file: Path, form: str) -> None:
    file.write_text(multiplied(8, form))
    assert file.stat().st_size < 500
    assert "its aliases and merges expand to over 10000 values" in refusal(file)


def test_too_many_settings_are_refused(file: Path) -> None:
    file.write_text("".join(f"x{number}: 1\n" for number in range(20_000)))
    message = refusal(file)
    assert "holds over 10000 names and values" in message
    assert "merges" not in message


@pytest.mark.parametrize("form", ["&a [*a]", "&a {<<: *a}", "&a {b: {c: *a}}"])
def test_recursive_alias_is_refused(file: Path, form: str) -> None:
    file.write_text(f"steps: {form}\n")
    assert "an alias refers to a value that contains it" in refusal(file)


def test_integer_too_long_to_print_is_refused(file: Path) -> None:
    file.write_text(f"steps: 0x{'f' * 9000}\n")
    assert "(got a very large int)" in refusal(file)


def test_impossible_local_path_is_refused() -> None:
    for path, why in (("a\0b", "null character"), ("~nobody-of-this-name/x", "unknown user")):
        with pytest.raises(InputError, match=why):
            load_config(None, {**BOTH, "input": path})


@pytest.mark.parametrize(
    ("given", "fields"),
    [("one", "one"), ("ALL", "all"), ("jpg;png", "jpg,png"), (".seg.png", "seg.png")],
)
def test_image_fields_accept_webdataset_separators(given: str, fields: str) -> None:
    config = load_config(None, {"input": "in", "output": "out", "image_field": given})
    assert config.read_options.image_field == config.layout()["image_field"] == fields


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        *[("image_field", ""), ("image_field", ",jpg")],
        *[("keep_columns", "a,"), ("keep_columns", "a,A"), ("keep_columns", "")],
    ],
)
def test_empty_or_duplicate_names_are_refused(setting: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"--{setting.replace('_', '-')}.*names"):
        load_config(None, {"input": "in", "output": "out", setting: value})


def test_yaml_error_does_not_repeat_the_file(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text('input: photos\noutput: "https://host/x?a=1&\nignature=hunter22+hunter22"x\n')
    with pytest.raises(ConfigError, match=r"is not valid YAML: line 3: ") as caught:
        load_config(str(file), {})
    assert "hunter22" not in str(caught.value)
