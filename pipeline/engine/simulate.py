"""Simulated stages for benchmarks of the engine: its overhead, and how busy it keeps inverters.

The simulated aligner decodes nothing. The simulated inverter sleeps as long as a GPU would work,
then returns random codes, as zeros would compress and be written much faster.
"""

from __future__ import annotations

import io
import math
import os
import resource
import tarfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.engine.events import Listener
from pipeline.engine.messages import FaceBatch, LatentBatch, PartDone, SampleBatch
from pipeline.engine.stages import Align, Invert, Read, StageTypes, Write
from pipeline.engine.stages.align import REJECTS, faces_schema

BATCH = 32
MEMBER_BYTES = 100
MIN_PARTS = 8  # per inverter, for a figure of how busy it was


class SimulatedAlign(Align):
    """Aligner that returns one face without pixels per sample."""

    def setup(self) -> None:
        """Start no child."""

    def process(self, batch: SampleBatch) -> FaceBatch:
        """Return the faces of a part."""
        samples, schema = batch.samples, faces_schema(self.settings)
        columns = {field.name: pa.nulls(len(samples), field.type) for field in schema}
        columns |= {"key": samples["key"], "source_uri": samples["uri"]}
        for name, number in (("face_index", 0), ("n_faces", 1)):
            columns[name] = pa.array(np.full(len(samples), number, np.int32))
        counts = replace(batch.counts, faces=len(samples))
        faces = pa.table(columns, schema=schema)
        return FaceBatch(batch.shard, batch.part, counts, faces, REJECTS.empty_table())


class SimulatedInvert(Invert):
    """Inverter that sleeps for the GPU time of its batches, then returns random codes."""

    seconds_per_batch = 0.0

    def setup(self) -> None:
        """Load no model."""
        self.lock = threading.Lock()
        names = set(self.columns.latents_schema().names) - {"image_id", "shard"}
        self.measures: dict[str, Any] = dict.fromkeys(names) | {"steps": 0, "best_step": 0}

    def process(self, batch: FaceBatch) -> LatentBatch:
        """Return the latents of a part."""
        faces = batch.faces.drop_columns(["pixels", "fields"]).to_pylist()
        with self.lock:
            started = time.perf_counter()
            time.sleep(math.ceil(len(faces) / BATCH) * self.seconds_per_batch)
            seconds = time.perf_counter() - started
        batch.counts.stage_seconds[self.name] = seconds  # type: ignore[assignment]
        counts = replace(batch.counts, inversion_seconds=seconds)
        shape = (len(faces), self.columns.n_styles, 512)
        codes = np.random.default_rng(batch.part).standard_normal(shape, np.float32)
        rows = [
            self.measures | face | {"w_plus": code} for face, code in zip(faces, codes, strict=True)
        ]
        return LatentBatch(batch.shard, batch.part, counts, rows, batch.rejects.to_pylist())


def simulated_stages(seconds_per_batch: float = 0.0) -> StageTypes:
    """Return stages whose inverter sleeps `seconds_per_batch` for 32 faces."""
    # Ray pickles a class that is in no module by value, with this attribute.
    sleeping = type("Sleeping", (SimulatedInvert,), {"seconds_per_batch": seconds_per_batch})
    return (Read, SimulatedAlign, sleeping, Write)


def write_shards(
    folder: Path,
    images: int,
    *,
    shard_images: int = 1024,
    skew: int = 1,
    image_bytes: int = MEMBER_BYTES,
) -> None:
    """Write tars with `images` members that are not images; the last holds `skew` times as many."""
    content = bytes(image_bytes)
    folder.mkdir(parents=True)
    shards = max(1, math.ceil(images / shard_images) - (skew - 1))
    left = images
    for number in range(shards):
        count = left if number == shards - 1 else min(left, shard_images)
        left -= count
        with tarfile.open(folder / f"shard-{number:06d}.tar", "w") as tar:
            for index in range(count):
                member = tarfile.TarInfo(f"{index:08d}.jpg")
                member.size = image_bytes
                tar.addfile(member, io.BytesIO(content))


class Trace(Listener):
    """Listener that records, per part, time, busy and inverting seconds, driver CPU and memory."""

    def __init__(self) -> None:
        self.points: list[tuple[float, float, float, float, float]] = []
        self._busy = self._inverting = 0.0
        self._page = os.sysconf("SC_PAGE_SIZE")

    def on_part(self, done: PartDone) -> None:
        """Record a part."""
        self._busy += done.counts.stage_seconds[Invert.name]
        self._inverting += done.counts.inversion_seconds
        use = resource.getrusage(resource.RUSAGE_SELF)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        megabytes = pages * self._page / 2**20
        now, cpu = time.monotonic(), use.ru_utime + use.ru_stime
        self.points.append((now, self._busy, self._inverting, cpu, megabytes))

    def summary(self, inverters: int) -> dict[str, Any]:
        """Return means over 20 % to 90 % of the run's parts; {} without parts.

        `inverter_busy` is the share of time that inverters had a part, `gpu_busy` that they slept;
        None if there are too few parts for a mean.
        """
        count = len(self.points)
        if not count:
            return {}
        first, last = self.points[count // 5], self.points[max(count // 5, count * 9 // 10 - 1)]
        parts = max(1, count * 9 // 10 - 1 - count // 5)
        elapsed, busy, inverting, cpu, _ = (b - a for a, b in zip(first, last, strict=True))
        capacity = max(1e-9, elapsed * inverters)
        enough = parts >= MIN_PARTS * inverters
        memory = [point[4] for point in self.points]
        return {
            "parts": count,
            "parts_a_second": round(parts / max(1e-9, elapsed), 2),
            "inverter_busy": round(busy / capacity, 4) if enough else None,
            "gpu_busy": round(inverting / capacity, 4) if enough else None,
            "driver_cpu_milliseconds_a_part": round(1000 * cpu / parts, 2),
            "driver_megabytes_first": round(memory[0], 1),
            "driver_megabytes_last": round(memory[-1], 1),
            "driver_megabytes_by_tenths": [
                round(memory[max(0, count * tenth // 10 - 1)], 1) for tenth in range(1, 11)
            ],
        }

    def idle_end(self, inverters: int) -> float:
        """Return the seconds from the last part but one per inverter to the end: the slow tail."""
        times = [point[0] for point in self.points]
        return times[-1] - times[max(0, len(times) - 1 - inverters)] if times else 0.0
