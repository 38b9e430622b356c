"""A small table of real inversions, made without Ray."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.config import JobConfig
from pipeline.engine.inverter import Inverter
from pipeline.engine.plan import make_plan
from pipeline.engine.stages.align import face_row
from pipeline.table import Table, open_table


@pytest.fixture
def make_table(
    tiny_bundle: str, sample_images: dict[str, bytes], tmp_path: Path
) -> Callable[..., Table]:
    """Write a table with two faces; keywords are settings of the job."""
    from pipeline.alignment import Aligner

    def sha256(name: str) -> str:
        return hashlib.sha256(sample_images[name]).hexdigest()

    def make(**settings: object) -> Table:
        folder = tmp_path / "images"
        folder.mkdir()
        names = ("portraits/0001.jpg", "portraits/0002.jpg")
        for name in names:
            (folder / Path(name).name).write_bytes(sample_images[name])
        given = {"input": str(folder), "output": str(tmp_path / "table"), "model": tiny_bundle}
        plan = make_plan(
            JobConfig.model_validate({**given, "identity": "none", "steps": 2, **settings})
        )
        aligner = Aligner(plan.job.alignment)
        faces = [
            face_row(Path(name).name, str(folder / Path(name).name), sha256(name), face)
            for name in names
            for face in aligner.align(sample_images[name]).faces
        ]
        account = Inverter(plan.job.inversion).rows(faces)
        plan.writer.write_part(
            next(plan.tasks).shard, 0, samples=2, latents=account.latents, rejects=account.rejects
        )
        return open_table(str(tmp_path / "table"))

    return make
