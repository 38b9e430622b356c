"""What Ray Data does for a training, stage by stage, without Ray; tests/jobs has the whole."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.engine.read import read_parts
from pipeline.engine.training import CropStage, SizedAlignStage, plan_crops, run_training
from pipeline.errors import ConfigError, FingerprintError
from pipeline.training.config import TrainConfig
from pipeline.training.crops import CropFile, Crops, put_index
from pipeline.training.settled import keep_settings


@pytest.fixture
def config(tmp_path: Path, tiny_bundle: str) -> TrainConfig:
    """Five grey images and one file that is none, three a part."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(5):
        content = io.BytesIO()
        Image.new("RGB", (80, 80), (number * 40,) * 3).save(content, "PNG")
        (folder / f"{number}.png").write_bytes(content.getvalue())
    (folder / "9.png").write_bytes(b"no image")
    return TrainConfig(
        input=str(folder),
        output=str(tmp_path / "run"),
        model=tiny_bundle,
        prealigned=True,
        part_size=3,
    )


def test_images_become_files_of_crops_in_the_order_of_the_input(config: TrainConfig) -> None:
    plan = plan_crops(config)
    align, cut = SizedAlignStage(plan.alignment), CropStage(plan.store.root)
    with align.aligner:
        rows = [cut(align(row)) for work in plan.works for row in read_parts(work.to_row())]
    parts = [row for row in rows if row["kind"] == "part"]
    assert [(row["samples"], row["faces"]) for row in parts] == [(3, 3), (3, 2)]
    assert json.loads(parts[1]["reasons"]) == {"unsupported_format": 1}
    names = plan.store.names()
    assert names == ["files-00000-00000.safetensors", "files-00000-00001.safetensors"]
    put_index(plan.store, [CropFile(names[0], 3), CropFile(names[1], 2)], {})
    images = Crops(plan.store).images(torch.arange(5))
    assert images.shape == (5, 3, 64, 64)
    assert np.array_equal(images[:, 0, 0, 0].numpy(), [0, 40, 80, 120, 160])


def test_other_crops_have_another_folder(config: TrainConfig) -> None:
    smaller = config.model_copy(update={"limit": 2})
    assert plan_crops(config).store.root == plan_crops(config).store.root
    assert plan_crops(config).store.root != plan_crops(smaller).store.root


def test_a_model_of_faces_is_not_trained_without_knowing_how_to_cut_them(
    config: TrainConfig, tmp_path: Path
) -> None:
    record = Path(str(config.model)) / "model.json"
    other = tmp_path / "other"
    other.mkdir()
    (other / "model.safetensors").write_bytes(
        (Path(str(config.model)) / "model.safetensors").read_bytes()
    )
    (other / "model.json").write_text(record.read_text().replace('"faces"', '"unknown"'))
    with pytest.raises(ConfigError, match="--prealigned"):
        plan_crops(config.model_copy(update={"model": str(other), "prealigned": None}))


def test_other_settings_are_refused_before_any_work(config: TrainConfig) -> None:
    keep_settings(config)
    run = Path(config.output)
    (run / "encoder.pt").write_bytes(b"")
    before = {path: path.read_bytes() for path in run.iterdir()}
    gone = config.model_copy(update={"input": str(run / "gone"), "seed": 1})
    with pytest.raises(FingerprintError, match="seed: 0 when it began, 1 asked for"):
        run_training(gone)  # an input that is not there is not even listed
    assert {path: path.read_bytes() for path in run.iterdir()} == before
