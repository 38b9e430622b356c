"""Plans over small inputs."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from pipeline.config import JobConfig
from pipeline.engine.plan import Plan, make_plan
from pipeline.engine.read import ShardWork
from pipeline.storage import Sample
from pipeline.training.config import TrainConfig


def samples(count: int, size: int = 1) -> list[Sample]:
    """Samples `0`, `1`, ... of `size` bytes."""
    return [Sample(str(number), f"/in/{number}", bytes(size)) for number in range(count)]


@pytest.fixture
def images(tmp_path: Path, sample_images: dict[str, bytes]) -> Path:
    """A folder of four photos: three faces, and a landscape without one."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("portraits/0001", "portraits/0002", "portraits/0003", "rejects/landscape"):
        (folder / f"{Path(name).name}.jpg").write_bytes(sample_images[f"{name}.jpg"])
    return folder


@pytest.fixture
def config_of(tiny_bundle: str, images: Path, tmp_path: Path) -> Callable[..., JobConfig]:
    """A job over `images` with the tiny model; keywords change its settings."""

    def config(**settings: object) -> JobConfig:
        given = {
            "input": str(images),
            "output": str(tmp_path / "table"),
            "model": tiny_bundle,
            "identity": "none",
            "part_size": 2,
        }
        return JobConfig.model_validate(given | settings)

    return config


@pytest.fixture
def plan(config_of: Callable[..., JobConfig]) -> Plan:
    """The plan of that job: one shard, `files-00000`, of two parts."""
    return make_plan(config_of())


@pytest.fixture
def work(plan: Plan) -> ShardWork:
    """What the plan has to do."""
    (only,) = plan.works
    return only


@pytest.fixture
def five_images(tmp_path: Path, tiny_bundle: str) -> TrainConfig:
    """A training on five grey images and one file that is none, three a part."""
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
