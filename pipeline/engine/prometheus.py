"""Prometheus metrics of a running job, through Ray's own exporter on every node.

Ray puts `ray_` before the names and adds labels of its own. What the driver counts, it counts from
the rows that it takes, each part once, so that the numbers are those of the table.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from ray.data import DataContext
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.util.metrics import Counter, Gauge

from pipeline.engine.autoscaling import requested_workers
from pipeline.engine.commit import STAGES, Watch
from pipeline.engine.pending import StageState
from pipeline.engine.progress import Progress
from pipeline.engine.rows import Row
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


class Meters(Watch):
    """The metrics of one run; Ray must be running."""

    def __init__(self) -> None:
        self._counters = {name: Counter(name, text) for name, text in COUNTERS.items()}
        self._rejects = Counter(REJECTS, "reject rows", tag_keys=("reason",))
        self._seconds = Counter(STAGE_SECONDS, "seconds of work", tag_keys=("stage",))
        self._busy = Gauge(BUSY, "share of time that inverters worked, of late")
        self._queued = Gauge(QUEUED, "parts before a stage", tag_keys=("stage",))
        self._workers = Gauge(WORKERS, "workers of a stage", tag_keys=("stage",))
        self._looked = self._averaged = time.monotonic()
        self._inverted = self._actor_seconds = 0.0

    def part(self, row: Row) -> None:
        """Count a part that is in the table."""
        for name, column in (("samples", "samples"), ("faces", "faces"), ("input_bytes", "bytes")):
            self._add(f"restyle_{name}_total", int(row[column]))
        self._add("restyle_parts_total", 1)
        for reason, count in json.loads(row["reasons"]).items():
            self._rejects.inc(count, {"reason": reason})
        for stage in STAGES:
            if row[f"{stage}_seconds"] > 0:
                self._seconds.inc(row[f"{stage}_seconds"], {"stage": stage})
        self._inverted += row["invert_seconds"]

    def shard(self, record: ShardRecord) -> None:
        """Count a committed shard."""
        del record
        self._add("restyle_shards_total", 1)

    def failed(self, shard_id: str, error: str, trace: str = "") -> None:
        """Count a failure."""
        del shard_id, error, trace
        self._add("restyle_failures_total", 1)

    def _add(self, name: str, count: int) -> None:
        if count:  # Ray refuses to add nothing
            self._counters[name].inc(count)

    def watch(self) -> None:
        """Have Ray Data show its queues and workers as it goes."""
        meters = self

        class Look(ExecutionCallback):
            def on_execution_step(self, executor: Any) -> None:
                meters.look(executor._topology, requested_workers(executor))

        DataContext.get_current().custom_execution_callback_classes.append(Look)

    def look(self, topology: Any, requested: Mapping[Any, int] = MappingProxyType({})) -> None:
        """Show the queues and workers of the stages; called many times a second.

        `requested` is how many workers an autoscaler is asked for, by operator.
        """
        now = time.monotonic()
        if now - self._looked < EVERY_S:
            return
        operators = list(topology.items())[1:]
        if len(operators) != len(STAGES):
            return  # another data set of this process, which Ray Data shows as well
        elapsed, self._looked = now - self._looked, now
        states = []
        for stage, (operator, state) in zip(STAGES, operators, strict=True):
            pool, queued = operator.get_actor_info(), state.total_enqueued_input_blocks()
            actors, active = pool.running, operator.num_active_tasks()
            self._queued.set(queued, {"stage": stage})
            self._workers.set(actors or active, {"stage": stage})
            needs = operator.min_scheduling_resources()
            states.append(
                StageState(
                    stage,
                    actors,
                    pool.pending + pool.restarting,
                    queued,
                    active,
                    requested=requested.get(operator, 0),
                    cpus=needs.cpu or 0.0,
                    gpus=needs.gpu or 0.0,
                )
            )
            if stage == "invert":
                self._actor_seconds += actors * elapsed
        # Not held: Ray Data's context, and so its callbacks, are pickled.
        if Progress.current:
            Progress.current.look(states)
        if now - self._averaged >= BUSY_OVER_S and self._actor_seconds:
            # A part counts when it arrives, so that a short while may hold more than its time.
            self._busy.set(min(1.0, self._inverted / self._actor_seconds))
            self._averaged, self._inverted, self._actor_seconds = now, 0.0, 0.0
