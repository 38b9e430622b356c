from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.config import JobConfig
from pipeline.engine.run import run_job
from pipeline.engine.simulate import SimulatedAlign
from pipeline.engine.stages import Read, Write
from pipeline.engine.stages.base import MAX_CRASHES, crash_counter
from pipeline.table import open_table
from tests.engine.on_ray import MARKS
from tests.engine.on_ray.stages import DEADLY, DeadlyInvert
from tests.storage.archives import write_tar

pytestmark = [*MARKS, pytest.mark.usefixtures("joined")]


def test_a_part_that_kills_its_worker_ends_alone(tiny_bundle: str, tmp_path: Path) -> None:
    write_tar(tmp_path / "in" / "a.tar", [(f"{number}.jpg", b"image") for number in range(6)])
    write_tar(tmp_path / "in" / "b.tar", [("0.jpg", b"image")])
    config = JobConfig(
        input=str(tmp_path / "in"),
        output=str(tmp_path / "table"),
        model=tiny_bundle,
        identity="none",
        part_size=1,
        align_workers=1,
        inverters=1,
    )
    outcome = run_job(config, (Read, SimulatedAlign, DeadlyInvert, Write))
    assert outcome.exit_code == 1
    (error,) = outcome.errors
    assert f"shard 'a', part {DEADLY}: invert: RuntimeError: {MAX_CRASHES} worker" in error
    result = open_table(str(tmp_path / "table")).sql("SELECT image_id FROM latents ORDER BY 1")
    others = [f"a/{number}#0" for number in range(6) if number != DEADLY]
    assert list(result["image_id"]) == [*others, "b/0#0"]


def test_attempts_share_a_folder_that_each_may_remove() -> None:
    """A worker that ends removes the empty folder in which another begins to count."""

    def count(part: int) -> None:
        with crash_counter("read", "a", part):
            pass

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(count, range(4000)))
