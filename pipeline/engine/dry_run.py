"""Dry run: estimate what a job would do from the listing and a few images timed in this process."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch

from pipeline.alignment import Aligner
from pipeline.config import JobConfig
from pipeline.engine.console.progress import enter_phase
from pipeline.engine.inverter import Inverter
from pipeline.engine.messages import ShardTask
from pipeline.engine.plan import Plan, make_plan
from pipeline.engine.stages.align import face_row
from pipeline.engine.stages.invert import codes_by_image
from pipeline.errors import StorageError
from pipeline.images import Rejection
from pipeline.machine import cpu_limit
from pipeline.storage import LeftOut, Sample, ShardListing, count_samples
from pipeline.table import InitialCodes, open_initial_table
from pipeline.table.statements import condition

TIMED_SAMPLES = 8
COUNTED_SHARDS = 4
# From the start of Ray to the first part, on a quiet machine.
START_SECONDS = 20.0
IDENTITY_BYTES = 256  # of dlib's vector
ROW_OVERHEAD_BYTES = 1500  # of a latents row besides its code: boxes, landmarks, metrics


def _count(config: JobConfig, tasks: list[ShardTask], left_out: LeftOut) -> tuple[list[int], bool]:
    """Return the samples of each task, and whether all counts are exact.

    Of many archives a few are read and the others are estimated by size. Files that the reader
    skips are counted in `left_out`.
    """
    if config.init and config.where:
        chosen_rows = condition(config.where, one_row=True)
        query = (
            f"SELECT shard, count(DISTINCT key) AS n FROM latents WHERE {chosen_rows} GROUP BY 1"
        )
        chosen = open_initial_table(config.init).arrow(query)
        by_shard = dict(zip(chosen["shard"].to_pylist(), chosen["n"].to_pylist(), strict=True))
        return [by_shard.get(task.shard.shard_id, 0) for task in tasks], True
    files = [task for task in tasks if not task.shard.is_slice]
    read = files if any(task.take for task in files) else files[:COUNTED_SHARDS]
    folders = [task for task in tasks if task.shard.is_slice]
    exact = {
        task.shard.shard_id: count_samples(task.shard, task.take, task.options, left_out)
        for task in (*folders, *read)
    }
    sampled = sum(exact[task.shard.shard_id] for task in read)
    density = sampled / max(1, sum(task.shard.size for task in read))
    counts = [exact.get(task.shard.shard_id, round(density * task.shard.size)) for task in tasks]
    return counts, len(read) == len(files)


def _samples(tasks: list[ShardTask]) -> Iterator[tuple[str, InitialCodes | None, Sample]]:
    """Yield the samples that the job would read: (shard id, initial codes, sample)."""
    for task in tasks:
        codes = task.initial_codes()
        with suppress(StorageError):  # the job reports damaged shards
            for sample in task.samples(codes):
                yield task.shard.shard_id, codes, sample


def _time(plan: Plan, tasks: list[ShardTask]) -> tuple[float, float, float]:
    """Return seconds per sample to align and to invert, and codes per sample; from a few images."""
    torch.set_num_threads(1)  # as in the job's actors
    aligner, inverter = Aligner(plan.job.alignment), Inverter(plan.job.inversion)
    count = codes = 0
    align = invert = 0.0
    timed = itertools.islice(_samples(tasks), TIMED_SAMPLES)
    for shard_id, group in itertools.groupby(timed, key=lambda item: item[0]):
        _, sources, samples = zip(*group, strict=True)
        began = time.perf_counter()
        faces = [row for sample in samples for row in _faces(aligner, sample)]
        aligned = time.perf_counter()
        keys = [sample.key for sample in samples]
        initial = codes_by_image(sources[0].of(keys)) if sources[0] else None
        codes += len(inverter.rows(faces, shard_id, initial).latents)
        align, invert = align + aligned - began, invert + time.perf_counter() - aligned
        count += len(samples)
    count = max(1, count)
    return align / count, invert / count, codes / count


def _faces(aligner: Aligner, sample: Sample) -> list[dict[str, Any]]:
    try:
        faces = aligner.align(sample.content).faces
    except Rejection:
        return []
    return [face_row(sample.key, sample.uri, "", face) for face in faces]


def estimate_job(config: JobConfig, *, shards: ShardListing | None = None) -> dict[str, Any]:
    """Estimate what `run_job(config)` would do; reads a little, writes nothing.

    `shards` is the listing of the input, if `check_request` has already started it.

    Raises the `RequestError`s of `run_job`. Times are for this machine with all cores busy;
    `estimated_seconds` includes `start_seconds`, the start of Ray.
    """
    plan = make_plan(config, dry_run=True, shards=shards)
    enter_phase("listing the input")
    tasks = list(plan.tasks)
    left_out = LeftOut(plan.backlog.left_out)
    counts, exact = _count(config, tasks, left_out)
    existing = sum(
        summary.samples for state in plan.states.values() for summary in state.parts.values()
    )
    to_do = max(0, sum(counts) - existing)
    enter_phase("timing a few images")
    align, invert, faces = _time(plan, tasks) if to_do else (0.0, 0.0, 0.0)
    columns = plan.job.spec.columns
    code = columns.n_styles * 512 * (2 if columns.w_plus_dtype == "float16" else 4)
    code += IDENTITY_BYTES if columns.identity else 0
    start = START_SECONDS if to_do else 0.0
    cores = cpu_limit()
    return {
        "dry_run": True,
        "model": plan.job.treatment,
        "shards": len(tasks) + plan.backlog.done_shards,
        "shards_to_do": len(tasks),
        "samples_to_do": to_do,
        "samples_are_exact": exact,
        "left_out": left_out.ordered(),
        "parts_to_do": sum(
            max(0, math.ceil(count / plan.writer.part_size) - len(task.existing))
            for count, task in zip(counts, tasks, strict=True)
        ),
        "skipped_parts": plan.backlog.done_parts,
        "align_seconds_a_sample": round(align, 4),
        "invert_seconds_a_sample": round(invert, 4),
        "start_seconds": start,
        "estimated_seconds": round(start + to_do * (align + invert) / cores, 1),
        "estimated_table_bytes": round(to_do * faces * (code + ROW_OVERHEAD_BYTES)),
        "table": config.output,
    }
