"""A training resumes only with the settings that it started with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.choices import EARLIER_SEARCH
from pipeline.errors import ConfigError, FingerprintError
from pipeline.storage import Store
from pipeline.training.config import MAY_CHANGE, TrainConfig
from pipeline.training.resume_check import (
    SETTINGS,
    Origin,
    check_same_settings,
    check_settings,
    save_settings,
)


@pytest.fixture
def started(tmp_path: Path) -> TrainConfig:
    """Return the settings of a training that has a checkpoint."""
    config = TrainConfig(input="faces", output=str(tmp_path / "run"), model="demo", rate=1e-3)
    save_settings(config)
    Store(config.output).put("encoder.pt", b"")
    return config


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("steps", 3, "steps: not set at the start, 3 now"),
        ("seed", 1, "seed: 0 at the start, 1 now"),
        ("l2", 0.5, "l2: not set at the start, 0.5 now"),
        ("rate", 2e-3, "rate: 0.001 at the start, 0.002 now"),
        ("augment", "photo", 'augment: "flip" at the start, "photo" now'),
        ("model", "other", 'model: "demo" at the start, "other" now'),
        ("held_out", 8, "held_out: 256 at the start, 8 now"),
        ("input", "cats", "/cats"),
    ],
)
def test_changed_settings_are_refused(
    started: TrainConfig, name: str, value: Any, message: str
) -> None:
    with pytest.raises(FingerprintError, match="another output or the same settings") as refusal:
        check_settings(started.model_copy(update={name: value}))
    (line,) = str(refusal.value).splitlines()[1:]
    assert message in line


def test_earlier_training_ignores_colour_profiles(started: TrainConfig) -> None:
    path = Path(started.output, SETTINGS)
    settings = json.loads(path.read_text())
    assert settings.pop("icc") == "apply"
    path.write_text(json.dumps(settings))
    check_settings(started.model_copy(update={"icc": "ignore"}))
    with pytest.raises(FingerprintError, match='icc: "ignore" at the start, "apply" now'):
        check_settings(started)


def test_every_changed_setting_is_listed(started: TrainConfig) -> None:
    with pytest.raises(FingerprintError) as refusal:
        check_settings(started.model_copy(update={"steps": 3, "seed": 1, "images": 5, "batch": 4}))
    lines = str(refusal.value).splitlines()[1:]
    assert [line.split(":")[0].strip() for line in lines] == ["batch", "seed", "steps"]


def test_earlier_training_resumes_without_turns(started: TrainConfig) -> None:
    store = Store(started.output)
    settings = json.loads(store.get(SETTINGS))
    kept = {name: value for name, value in settings.items() if name not in EARLIER_SEARCH}
    store.put(SETTINGS, json.dumps(kept).encode())
    check_settings(started.model_copy(update=EARLIER_SEARCH))
    with pytest.raises(FingerprintError, match='turns: "none" at the start, "auto" now'):
        check_settings(started)


def test_length_and_place_may_change(started: TrainConfig) -> None:
    changes = {
        "images": 2_000_000, "report_every": 7, "save_every": 7, "save_minutes": 1.0,
        "tensorboard": False, "workers": 2, "device": "cpu", "align_workers": 3, "restarts": 0,
    }  # fmt: skip
    assert set(changes) == MAY_CHANGE - {"output"}
    check_settings(started.model_copy(update=changes))


def test_equal_paths_of_two_spellings_pass(started: TrainConfig) -> None:
    check_settings(started.model_copy(update={"input": str(Path("faces").absolute()) + "/"}))


def test_moved_training_resumes_in_its_new_folder(started: TrainConfig, tmp_path: Path) -> None:
    Path(started.output).rename(tmp_path / "moved")
    check_settings(started.model_copy(update={"output": str(tmp_path / "moved")}))


@pytest.mark.parametrize(
    ("origin", "message"),
    [
        (Origin("other", "weights"), "the images in 'faces' have changed since"),
        (Origin("crops", "other"), "the weights in 'demo' have changed since"),
        (Origin("other", "other"), "the images in 'faces' and the weights in 'demo' have changed"),
    ],
)
def test_changed_images_or_weights_are_refused(
    started: TrainConfig, origin: Origin, message: str
) -> None:
    save_settings(started, Origin("crops", "weights"))
    check_settings(started)
    check_settings(started, Origin("crops", "weights"))
    with pytest.raises(FingerprintError, match=message) as refusal:
        check_settings(started, origin)
    assert "\n" not in str(refusal.value)


def test_settings_may_change_without_a_checkpoint(started: TrainConfig) -> None:
    Store(started.output).remove("encoder.pt")
    check_settings(started.model_copy(update={"seed": 1}))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "is missing beside encoder.pt"),
        (b'{"input": "fa', "is not JSON"),
        (b"\xff", "is not JSON"),
        (b"[]", "is not a JSON object"),
        (b'{"input": "faces"}', "does not have the settings of a training"),
        (b'{"input": "a", "output": "b", "colour": 1}', "does not have the settings"),
        (b'{"input": "a", "output": "b", "origin": {"a": 1}}', "does not have the settings"),
    ],
)
def test_checkpoint_without_settings_is_refused(
    started: TrainConfig, content: bytes | None, why: str
) -> None:
    store = Store(started.output)
    store.remove(SETTINGS)
    if content is not None:
        store.put(SETTINGS, content)
    with pytest.raises(ConfigError, match=why) as refusal:
        check_settings(started)
    assert store.uri(SETTINGS) in str(refusal.value)


def test_nested_settings_are_named_with_dots() -> None:
    started = {"generator": {"images": 8, "batch": 4}, "channels": {4: 8}}
    same = {"generator": {"images": 16, "batch": 4}, "channels": {"4": 8}}
    check_same_settings("work", started, same, {"generator.images"})
    with pytest.raises(FingerprintError, match=r"generator\.batch: 4 at the start, 8 now"):
        check_same_settings("work", started, {"generator": {"batch": 8}, "channels": {4: 8}}, ())
