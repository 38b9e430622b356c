"""Plans over small inputs, and the rows that their stages would send."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from pipeline.config import JobConfig
from pipeline.engine import run
from pipeline.engine.cluster import Resources
from pipeline.engine.inverter import InvertSettings
from pipeline.engine.ledger import Ledger
from pipeline.engine.messages import (
    Failure,
    LatentBatch,
    Message,
    PartDone,
    ShardEnd,
    ShardTask,
)
from pipeline.engine.plan import Plan, make_plan
from pipeline.inversion.methods import Method
from pipeline.storage import Sample, Shard
from pipeline.table import Counts, RunRecord
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


@pytest.fixture(scope="session")
def settings(tiny_bundle: str) -> InvertSettings:
    """Three steps of the tiny model, without an identity."""
    return InvertSettings(tiny_bundle, Method(steps=3), identity="none")


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
    """Return the plan of that job: one shard, `files-00000`, of two parts."""
    return make_plan(config_of())


@pytest.fixture
def work(plan: Plan) -> ShardTask:
    """Return the only task of the plan."""
    (only,) = plan.tasks
    return only


@pytest.fixture
def five_images(tmp_path: Path, tiny_bundle: str) -> TrainConfig:
    """A training on five grey images and one invalid file, three per part."""
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


SHARD = Shard("files-00000", "/in", "folder", 0, "e")


def end(parts: int = 2, samples: int = 4) -> ShardEnd:
    """Return the last message of the reader of the plan's shard."""
    return ShardEnd(SHARD, parts, samples)


def failure(part: int, stage: str, error: Exception) -> Failure:
    """Return the message of `stage` for a part of the plan's shard that fails with `error`."""
    return Failure.of(LatentBatch(SHARD, part, Counts(), [], []), stage, error)


@pytest.fixture
def written(plan: Plan, work: ShardTask) -> Callable[..., PartDone]:
    """Return a function that writes a part of the plan's shard, all rejects."""

    def write(part: int, **counts: int) -> PartDone:
        rejects = [
            {"key": name, "face_index": None, "source_sha256": ""}
            | {"source_uri": work.shard.uri_of(name)}
            | {"reason": "no_face", "detail": ""}
            for name in work.shard.names[2 * part : 2 * part + 2]
        ]
        record = plan.writer.write_part(work.shard, part, samples=2, latents=[], rejects=rejects)
        record = plan.writer.with_etags(record)
        sums = Counts(parts=1, samples=2, rejects=2, bytes=9, reasons=Counter(no_face=2))
        sums.stage_seconds["align"] = 1.5  # type: ignore[assignment]
        return PartDone(SHARD, part, replace(sums, **counts), record)

    return write


@pytest.fixture
def outcome() -> RunRecord:
    return RunRecord()


@pytest.fixture
def ledger(plan: Plan, outcome: RunRecord) -> Ledger:
    return Ledger(plan, outcome)


def is_committed(plan: Plan) -> bool:
    """Return whether the plan's shard is committed."""
    return plan.writer.store.exists("_shards/files-00000.json")


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[Message]], None]:
    """Return a function that replaces the output of the stages by given messages."""

    def put(messages: list[Message]) -> None:
        monkeypatch.setattr(run.RaySession, "__enter__", lambda _: Resources(4, 0))
        monkeypatch.setattr(run, "build_pipeline", lambda *_: None)
        monkeypatch.setattr(run, "run_pipeline", lambda _: iter(messages))

    return put
