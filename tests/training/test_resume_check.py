"""A training goes on as what it was begun as, or it is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

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
def begun(tmp_path: Path) -> TrainConfig:
    """The settings of a training that has left a checkpoint."""
    config = TrainConfig(input="faces", output=str(tmp_path / "run"), model="demo", rate=1e-3)
    save_settings(config)
    Store(config.output).put("encoder.pt", b"")
    return config


@pytest.mark.parametrize(
    ("name", "value", "told"),
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
def test_what_would_be_another_training_is_refused(
    begun: TrainConfig, name: str, value: Any, told: str
) -> None:
    with pytest.raises(FingerprintError, match="another output or the same settings") as refusal:
        check_settings(begun.model_copy(update={name: value}))
    (line,) = str(refusal.value).splitlines()[1:]
    assert told in line


def test_a_training_begun_before_profiles_were_applied_ignores_them(begun: TrainConfig) -> None:
    path = Path(begun.output, SETTINGS)
    settings = json.loads(path.read_text())
    assert settings.pop("icc") == "apply"
    path.write_text(json.dumps(settings))
    check_settings(begun.model_copy(update={"icc": "ignore"}))
    with pytest.raises(FingerprintError, match='icc: "ignore" at the start, "apply" now'):
        check_settings(begun)


def test_every_difference_is_told(begun: TrainConfig) -> None:
    with pytest.raises(FingerprintError) as refusal:
        check_settings(begun.model_copy(update={"steps": 3, "seed": 1, "images": 5, "batch": 4}))
    lines = str(refusal.value).splitlines()[1:]
    assert [line.split(":")[0].strip() for line in lines] == ["batch", "seed", "steps"]


def test_a_training_begun_before_turns_goes_on_without_them(begun: TrainConfig) -> None:
    store = Store(begun.output)
    settings = json.loads(store.get(SETTINGS))
    earlier = {"turns": "none", "search_pixels": 0, "check_below": 0.0}
    kept = {name: value for name, value in settings.items() if name not in earlier}
    store.put(SETTINGS, json.dumps(kept).encode())
    check_settings(begun.model_copy(update=earlier))
    with pytest.raises(FingerprintError, match='turns: "none" at the start, "auto" now'):
        check_settings(begun)


def test_how_long_and_where_it_trains_may_change(begun: TrainConfig) -> None:
    changes = {
        "images": 2_000_000, "report_every": 7, "save_every": 7, "save_minutes": 1.0,
        "tensorboard": False, "workers": 2, "device": "cpu", "align_workers": 3, "restarts": 0,
    }  # fmt: skip
    assert set(changes) == MAY_CHANGE - {"output"}
    check_settings(begun.model_copy(update=changes))


def test_one_folder_may_be_written_in_two_ways(begun: TrainConfig) -> None:
    check_settings(begun.model_copy(update={"input": str(Path("faces").absolute()) + "/"}))


def test_a_moved_run_goes_on_where_it_is(begun: TrainConfig, tmp_path: Path) -> None:
    Path(begun.output).rename(tmp_path / "moved")
    check_settings(begun.model_copy(update={"output": str(tmp_path / "moved")}))


@pytest.mark.parametrize(
    ("origin", "told"),
    [
        (Origin("other", "weights"), "the images in 'faces' have changed since"),
        (Origin("crops", "other"), "the weights in 'demo' have changed since"),
        (Origin("other", "other"), "the images in 'faces' and the weights in 'demo' have changed"),
    ],
)
def test_other_images_or_weights_under_the_same_name_are_refused(
    begun: TrainConfig, origin: Origin, told: str
) -> None:
    save_settings(begun, Origin("crops", "weights"))
    check_settings(begun)
    check_settings(begun, Origin("crops", "weights"))
    with pytest.raises(FingerprintError, match=told) as refusal:
        check_settings(begun, origin)
    assert "\n" not in str(refusal.value)


def test_without_a_checkpoint_there_is_nothing_to_spoil(begun: TrainConfig) -> None:
    Store(begun.output).remove("encoder.pt")
    check_settings(begun.model_copy(update={"seed": 1}))


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
def test_a_checkpoint_of_unknown_settings_is_refused(
    begun: TrainConfig, content: bytes | None, why: str
) -> None:
    store = Store(begun.output)
    store.remove(SETTINGS)
    if content is not None:
        store.put(SETTINGS, content)
    with pytest.raises(ConfigError, match=why) as refusal:
        check_settings(begun)
    assert store.uri(SETTINGS) in str(refusal.value)


def test_nested_settings_are_told_by_their_dotted_names() -> None:
    begun = {"generator": {"images": 8, "batch": 4}, "channels": {4: 8}}
    same = {"generator": {"images": 16, "batch": 4}, "channels": {"4": 8}}
    check_same_settings("work", begun, same, {"generator.images"})
    with pytest.raises(FingerprintError, match=r"generator\.batch: 4 at the start, 8 now"):
        check_same_settings("work", begun, {"generator": {"batch": 8}, "channels": {4: 8}}, ())
