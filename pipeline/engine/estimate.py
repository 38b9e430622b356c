"""`--dry-run`: what a job would do, from the listing and a few images timed in this process."""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Iterator
from typing import Any

from pipeline.alignment import Aligner
from pipeline.config import JobConfig
from pipeline.engine.align import face_row
from pipeline.engine.invert import Inverter
from pipeline.engine.plan import Plan, make_plan
from pipeline.engine.read import ShardWork
from pipeline.images import Rejection
from pipeline.storage import Sample, read_samples

TIMED_SAMPLES = 8
COUNTED_SHARDS = 4
ROW_OVERHEAD_BYTES = 1500  # of a latents row besides its code: boxes, landmarks, metrics


def _samples(works: list[ShardWork]) -> Iterator[Sample]:
    for work in works:
        yield from itertools.islice(read_samples(work.shard), work.take)


def _count(works: list[ShardWork]) -> tuple[int, bool]:
    """Samples in `works`, and whether the number is exact: some tars are weighed, not read."""
    counted = weighed = size = 0
    unread: list[ShardWork] = []
    read = 0
    for work in works:
        if work.shard.kind == "folder":
            counted += min(len(work.shard.names), work.take or len(work.shard.names))
        elif read < COUNTED_SHARDS or work.take is not None:
            samples = sum(1 for _ in itertools.islice(read_samples(work.shard), work.take))
            counted, weighed, size, read = (
                counted + samples,
                weighed + samples,
                size + work.shard.size,
                read + 1,
            )
        else:
            unread.append(work)
    if unread:
        counted += round(weighed / max(size, 1) * sum(work.shard.size for work in unread))
    return counted, not unread


def _time(plan: Plan) -> tuple[float, float, float]:
    """Seconds a sample to align and to invert, and faces a sample, on the first few images."""
    aligner, inverter = Aligner(plan.recipe.alignment), Inverter(plan.recipe.inversion)
    samples = list(itertools.islice(_samples(plan.works), TIMED_SAMPLES))
    faces: list[dict[str, Any]] = []
    started = time.perf_counter()
    for sample in samples:
        try:
            found = aligner.align(sample.content)
        except Rejection:
            continue
        faces += [face_row(sample.key, sample.uri, "", face) for face in found]
    aligned = time.perf_counter()
    inverter.rows(faces)
    inverted = time.perf_counter()
    count = max(1, len(samples))
    return (aligned - started) / count, (inverted - aligned) / count, len(faces) / count


def estimate_job(config: JobConfig) -> dict[str, Any]:
    """What `run_job(config)` would do; reads a little, writes nothing.

    Raises a `RequestError` where `run_job` would. Times are of this machine, all cores busy.
    """
    plan = make_plan(config, dry_run=True)
    samples, exact = _count(plan.works)
    existing = sum(
        summary.samples for state in plan.states.values() for summary in state.parts.values()
    )
    to_do = max(0, samples - existing)
    align, invert, faces = _time(plan) if to_do else (0.0, 0.0, 0.0)
    columns = plan.recipe.columns
    code = columns.n_styles * 512 * (2 if columns.w_plus_dtype == "float16" else 4)
    cores = os.cpu_count() or 1
    return {
        "dry_run": True,
        "shards": len(plan.works) + plan.done_shards,
        "shards_to_do": len(plan.works),
        "samples_to_do": to_do,
        "samples_are_exact": exact,
        "parts_to_do": sum(
            math.ceil(samples * share / config.part_size) for share in _shares(plan.works)
        ),
        "skipped_parts": plan.done_parts,
        "align_seconds_a_sample": round(align, 4),
        "invert_seconds_a_sample": round(invert, 4),
        "estimated_seconds": round(to_do * (align + invert) / cores, 1),
        "estimated_table_bytes": round(to_do * faces * (code + ROW_OVERHEAD_BYTES)),
        "table": config.output,
    }


def _shares(works: list[ShardWork]) -> list[float]:
    total = sum(work.shard.size for work in works) or 1
    return [work.shard.size / total for work in works]
