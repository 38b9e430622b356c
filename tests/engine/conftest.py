"""Plans over small inputs, and the rows that their stages would send."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
from PIL import Image

from pipeline.config import JobConfig
from pipeline.engine import run
from pipeline.engine.cluster import Resources
from pipeline.engine.commit import Committer
from pipeline.engine.inverter import InvertSettings
from pipeline.engine.plan import Plan, make_plan
from pipeline.engine.read import ShardWork
from pipeline.engine.rows import Row, blank_row
from pipeline.inversion.methods import Method
from pipeline.storage import Sample
from pipeline.table import RunRecord
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


def end(parts: int = 2, samples: int = 4) -> Row:
    """What the reader of the plan's shard sends last."""
    return blank_row("end", "files-00000", parts) | {"samples": samples}


@pytest.fixture
def written(plan: Plan, work: ShardWork) -> Callable[[int], Row]:
    """Writes a part of the plan's shard, all rejects; the row that its writer sends."""

    def write(part: int) -> Row:
        rejects = [
            {"key": name, "face_index": None, "source_sha256": ""}
            | {"source_uri": work.shard.uri_of(name)}
            | {"reason": "no_face", "detail": ""}
            for name in work.shard.names[2 * part : 2 * part + 2]
        ]
        done = plan.writer.write_part(work.shard, part, samples=2, latents=[], rejects=rejects)
        done = plan.writer.with_etags(done)
        row = blank_row("part", work.shard.shard_id, part)
        counts = {"samples": 2, "rejects": 2, "reasons": '{"no_face": 2}', "bytes": 9}
        return row | counts | {"summary": json.dumps(done.to_dict()), "align_seconds": 1.5}

    return write


@pytest.fixture
def outcome() -> RunRecord:
    return RunRecord()


@pytest.fixture
def committer(plan: Plan, outcome: RunRecord) -> Committer:
    return Committer(plan, outcome)


def is_committed(plan: Plan) -> bool:
    """Whether the plan's shard is."""
    return plan.writer.store.exists("_shards/files-00000.json")


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[Row]], None]:
    """Puts given rows in the place of what comes out of the stages."""

    def put(rows: list[Row]) -> None:
        monkeypatch.setattr(run, "running_ray", lambda _: nullcontext(Resources(4, 0)))
        monkeypatch.setattr(run, "configure_context", lambda *_: None)
        monkeypatch.setattr(run, "build_dataset", lambda *_: None)
        monkeypatch.setattr(run, "summaries", lambda _: iter(rows))

    return put
