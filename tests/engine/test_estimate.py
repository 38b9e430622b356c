from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.config import JobConfig
from pipeline.engine import estimate
from pipeline.engine.estimate import estimate_job
from pipeline.engine.plan import make_plan
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
    (work,) = plan.works
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
    monkeypatch.setattr(estimate, "COUNTED_SHARDS", 1)
    monkeypatch.setattr(estimate, "_time", lambda *_: (1.0, 2.0, 1.0))
    for name in "abc":
        write_tar(tmp_path / "tars" / f"{name}.tar", [(f"{n}.jpg", b"image") for n in range(4)])
    told = estimate_job(config_of(input=str(tmp_path / "tars"), limit=limit))
    assert (told["samples_to_do"], told["samples_are_exact"]) == (samples, exact)
    start = estimate.START_SECONDS
    assert (told["start_seconds"], start > 0) == (start, True)
    assert told["estimated_seconds"] == pytest.approx(
        start + 3 * samples / (os.cpu_count() or 1), abs=0.1
    )
