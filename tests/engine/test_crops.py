"""The cutting of crops, stage by stage, without Ray; tests/jobs has the whole."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.engine.crops import CropStage, SizedAlignStage, plan_crops
from pipeline.engine.read import read_parts
from pipeline.errors import ConfigError
from pipeline.training.config import TrainConfig
from pipeline.training.crops import CropFile, Crops, put_index


def test_images_become_files_of_crops_in_the_order_of_the_input(five_images: TrainConfig) -> None:
    plan = plan_crops(five_images)
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


def test_other_crops_have_another_folder(five_images: TrainConfig) -> None:
    smaller = five_images.model_copy(update={"limit": 2})
    assert plan_crops(five_images).store.root == plan_crops(five_images).store.root
    assert plan_crops(five_images).store.root != plan_crops(smaller).store.root


def test_a_model_of_faces_is_not_trained_without_knowing_how_to_cut_them(
    five_images: TrainConfig, tmp_path: Path
) -> None:
    record = Path(str(five_images.model)) / "model.json"
    other = tmp_path / "other"
    other.mkdir()
    (other / "model.safetensors").write_bytes(
        (Path(str(five_images.model)) / "model.safetensors").read_bytes()
    )
    (other / "model.json").write_text(record.read_text().replace('"faces"', '"unknown"'))
    with pytest.raises(ConfigError, match="--prealigned"):
        plan_crops(five_images.model_copy(update={"model": str(other), "prealigned": None}))
