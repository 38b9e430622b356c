"""Plans over small inputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.config import JobConfig
from pipeline.engine.plan import Plan, make_plan
from pipeline.engine.read import ShardWork
from pipeline.storage import Sample


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
