from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.config import JobConfig
from pipeline.engine import dry_run
from pipeline.engine.dry_run import estimate_job
from pipeline.engine.plan import make_plan
from pipeline.table import RunRecord, open_table
from tests.faults.light import execute_in_order
from tests.faults.stages import HASHED
from tests.storage.archives import write_tar


def test_an_estimate_counts_times_and_writes_nothing(config_of: Callable[..., JobConfig]) -> None:
    config = config_of(part_size=3)
    told = estimate_job(config)
    assert (told["shards"], told["shards_to_do"], told["samples_to_do"]) == (1, 1, 4)
    assert (told["parts_to_do"], told["skipped_parts"]) == (2, 0)
    assert told["samples_are_exact"] is True
    assert min(told["align_seconds_a_sample"], told["invert_seconds_a_sample"]) > 0
    codes = 3 * 10 * 512 * 2  # three of the four have a face
    assert codes < told["estimated_table_bytes"] < 2 * codes
    assert not Path(config.output).exists()


def test_parts_that_are_there_are_not_to_do(config_of: Callable[..., JobConfig]) -> None:
    plan = make_plan(config_of())
    (work,) = plan.tasks
    rejects = [
        {"key": name, "face_index": None, "source_uri": "", "source_sha256": ""}
        | {"reason": "no_face", "detail": ""}
        for name in work.shard.names[:2]
    ]
    plan.writer.write_part(work.shard, 0, samples=2, latents=[], rejects=rejects)
    told = estimate_job(config_of())
    assert (told["samples_to_do"], told["parts_to_do"], told["skipped_parts"]) == (2, 1, 1)


@pytest.mark.parametrize(("limit", "samples", "exact"), [(None, 12, False), (5, 5, True)])
def test_archives_beyond_the_first_are_weighed_and_not_read(
    config_of: Callable[..., JobConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    limit: int | None,
    samples: int,
    exact: bool,
) -> None:
    monkeypatch.setattr(dry_run, "COUNTED_SHARDS", 1)
    monkeypatch.setattr(dry_run, "_time", lambda *_: (1.0, 2.0, 1.0))
    for name in "abc":
        write_tar(tmp_path / "tars" / f"{name}.tar", [(f"{n}.jpg", b"image") for n in range(4)])
    told = estimate_job(config_of(input=str(tmp_path / "tars"), limit=limit))
    assert (told["samples_to_do"], told["samples_are_exact"]) == (samples, exact)
    start = dry_run.START_SECONDS
    assert (told["start_seconds"], start > 0) == (start, True)
    assert told["estimated_seconds"] == pytest.approx(
        start + 3 * samples / (os.cpu_count() or 1), abs=0.1
    )


@pytest.fixture
def first_pass(config_of: Callable[..., JobConfig], tmp_path: Path) -> JobConfig:
    """A table of the photos as crops, two a shard."""
    config = config_of(output=str(tmp_path / "first"), files_per_shard=2, prealigned=True)
    plan, outcome = make_plan(config), RunRecord()
    execute_in_order(config, plan, outcome, stages=HASHED)
    assert outcome.errors == []
    return config


@pytest.mark.parametrize("method", ["restyle", "hybrid"])
def test_faces_that_start_from_a_table_are_inverted_to_be_timed(
    config_of: Callable[..., JobConfig], first_pass: JobConfig, method: str
) -> None:
    table = open_table(first_pass.output)
    codes = table.sql("SELECT key FROM latents WHERE face_index = 0")
    few = {"method": method} | ({"iterations": 5} if method == "hybrid" else {})
    shared = {"init": first_pass.output, "files_per_shard": 2, "prealigned": True}
    told = estimate_job(config_of(**shared, **few))
    assert told["samples_to_do"] == 4
    assert told["invert_seconds_a_sample"] > 0
    bytes_of_a_code = 10 * 512 * 2 + dry_run.ROW_OVERHEAD_BYTES
    assert told["estimated_table_bytes"] == len(codes) * bytes_of_a_code
    one = codes["key"][0]
    told = estimate_job(config_of(**shared, **few, where=f"key = '{one}'"))
    assert (told["samples_to_do"], told["samples_are_exact"]) == (1, True)
    assert told["invert_seconds_a_sample"] > 0
    assert told["estimated_table_bytes"] == bytes_of_a_code
