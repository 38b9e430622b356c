"""Prometheus metrics of a running job, through Ray's own exporter on every node.

Ray puts `ray_` before the names and adds labels of its own. What the driver counts, it counts from
the rows that it takes, each part once, so that the numbers are those of the table.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from ray.util.metrics import Counter, Gauge

from pipeline.engine.events import Listener
from pipeline.engine.messages import PartDone
from pipeline.engine.pending import StageState
from pipeline.engine.pipeline import stage_of
from pipeline.engine.progress import Progress
from pipeline.engine.ray_autoscaler import requested_workers
from pipeline.engine.stages import Invert, Stage
from pipeline.table import ShardRecord

COUNTERS = {
    "restyle_parts_total": "parts in the table",
    "restyle_samples_total": "samples of these parts",
    "restyle_faces_total": "faces inverted",
    "restyle_shards_total": "shards committed",
    "restyle_failures_total": "parts and commits that failed",
    "restyle_input_bytes_total": "encoded bytes of the samples",
}
REJECTS = "restyle_rejects_total"  # {reason}
STAGE_SECONDS = "restyle_stage_seconds_total"  # {stage}, summed over workers
BUSY = "restyle_inverter_busy_fraction"
QUEUED = "restyle_queued_parts"  # {stage}; before readers: shards
WORKERS = "restyle_workers"  # {stage}: actors, or running tasks
NAMES = (*COUNTERS, REJECTS, STAGE_SECONDS, BUSY, QUEUED, WORKERS)
# How often the pipeline is looked at, and over how long its inverters' work is averaged.
EVERY_S = 2.0
BUSY_OVER_S = 20.0


class PrometheusMetrics(Listener):
    """The metrics of one run; Ray must be running."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self.stages = stages
        self._counters = {name: Counter(name, text) for name, text in COUNTERS.items()}
        self._rejects = Counter(REJECTS, "reject rows", tag_keys=("reason",))
        self._seconds = Counter(STAGE_SECONDS, "seconds of work", tag_keys=("stage",))
        self._busy = Gauge(BUSY, "share of time that inverters worked, of late")
        self._queued = Gauge(QUEUED, "parts before a stage", tag_keys=("stage",))
        self._workers = Gauge(WORKERS, "workers of a stage", tag_keys=("stage",))
        self._looked = self._averaged = time.monotonic()
        self._inverted = self._actor_seconds = 0.0

    def on_part(self, done: PartDone) -> None:
        """Count a part that is in the table."""
        counts = done.counts
        self._add("restyle_samples_total", counts.samples)
        self._add("restyle_faces_total", counts.faces)
        self._add("restyle_input_bytes_total", counts.bytes)
        self._add("restyle_parts_total", 1)
        for reason, count in counts.reasons.items():
            self._rejects.inc(count, {"reason": reason})
        for stage, seconds in counts.stage_seconds.items():
            if seconds > 0:
                self._seconds.inc(seconds, {"stage": stage})
        self._inverted += counts.stage_seconds.get(Invert.name, 0.0)

    def on_shard(self, record: ShardRecord) -> None:
        """Count a committed shard."""
        del record
        self._add("restyle_shards_total", 1)

    def on_failure(self, shard_id: str, error: str, trace: str = "") -> None:
        """Count a failure."""
        del shard_id, error, trace
        self._add("restyle_failures_total", 1)

    def _add(self, name: str, count: int) -> None:
        if count:  # Ray refuses to add nothing
            self._counters[name].inc(count)

    def observe(self, executor: Any) -> None:
        """Export the queues and workers of the stages; called many times a second."""
        now = time.monotonic()
        if now - self._looked < EVERY_S:
            return
        elapsed, self._looked = now - self._looked, now
        states, requested = [], requested_workers(executor)
        for operator, state in executor._topology.items():
            stage = stage_of(operator.name, self.stages)
            if stage is None:
                continue
            pool, queued = operator.get_actor_info(), state.total_enqueued_input_blocks()
            actors, active = pool.running, operator.num_active_tasks()
            self._queued.set(queued, {"stage": stage.name})
            self._workers.set(actors or active, {"stage": stage.name})
            needs = operator.min_scheduling_resources()
            states.append(
                StageState(
                    stage.name,
                    actors,
                    pool.pending + pool.restarting,
                    queued,
                    active,
                    requested=requested.get(operator, 0),
                    cpus=needs.cpu or 0.0,
                    gpus=needs.gpu or 0.0,
                )
            )
            if stage.name == Invert.name:
                self._actor_seconds += actors * elapsed
        if Progress.current:
            Progress.current.look(states)
        if now - self._averaged >= BUSY_OVER_S and self._actor_seconds:
            # A part counts when it arrives, so that a short while may hold more than its time.
            self._busy.set(min(1.0, self._inverted / self._actor_seconds))
            self._averaged, self._inverted, self._actor_seconds = now, 0.0, 0.0
