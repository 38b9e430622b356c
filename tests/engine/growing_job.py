"""A job of sleeping stages on a cluster that grows, and who was there when.

    RAY_ADDRESS=... python -m tests.engine.growing_job FOLDER

FOLDER has `in/` (tars), `model/` and gets `table/`. The last line of stdout is one JSON object: the
job's outcome and the nodes by type, each time that they changed.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray

from pipeline.config import JobConfig
from pipeline.engine import ray_autoscaler
from pipeline.engine.messages import FaceBatch, SampleBatch
from pipeline.engine.run import run_job
from pipeline.engine.simulate import SimulatedAlign, SimulatedInvert
from pipeline.engine.stages import Read, Write

EVERY_S = 0.5
ALIGN_S, INVERT_S = 1.5, 2.0
# Its parts take long to align, so that they come after all others.
TAIL_SHARD, TAIL_S = "tail", 45.0
GONE_WITHIN_S = 60.0
Trace = list[tuple[float, dict[str, int]]]


class SleepingAlign(SimulatedAlign):
    """Much longer for the parts of the tail."""

    def process(self, batch: SampleBatch) -> FaceBatch:
        time.sleep(TAIL_S if batch.shard_id.startswith(TAIL_SHARD) else ALIGN_S)
        return super().process(batch)


class SleepingInvert(SimulatedInvert):
    """Slower than an aligner, so that both pools want to grow."""

    seconds_per_batch = INVERT_S


def _nodes() -> dict[str, int]:
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    workers = [have for have in alive if "node:__internal_head__" not in have]
    return dict(Counter("gpu" if have.get("GPU") else "cpu" for have in workers))


@contextmanager
def _traced() -> Iterator[Trace]:
    """Watch the nodes of the Ray that this process is joined to, while it is."""
    trace: Trace = []
    stop, started = threading.Event(), time.monotonic()

    def watch() -> None:
        while not stop.wait(EVERY_S):
            with suppress(Exception):  # joining or leaving
                nodes = _nodes() if ray.is_initialized() else None
                if nodes is not None and (not trace or trace[-1][1] != nodes):
                    trace.append((round(time.monotonic() - started, 1), nodes))
                    print(*trace[-1], file=sys.stderr, flush=True)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield trace
    finally:
        stop.set()
        thread.join()


def _wait_for_none() -> None:
    ray.init(address="auto", logging_level="ERROR", log_to_driver=False)
    deadline = time.monotonic() + GONE_WITHIN_S
    while _nodes() and time.monotonic() < deadline:
        time.sleep(EVERY_S)
    time.sleep(2 * EVERY_S)
    ray.shutdown()


def main(folder: str) -> dict[str, Any]:
    """Run the job, then wait for the nodes to go."""
    ray_autoscaler.ASK_EVERY_S, ray_autoscaler.DEBOUNCE_S = (
        2.0,
        6.0,
    )  # nodes of this machine come soon
    config = JobConfig(
        input=f"{folder}/in",
        output=f"{folder}/table",
        model=f"{folder}/model",
        identity="none",
        part_size=1,
        device="cuda",
    )
    with _traced() as trace:
        started = time.monotonic()
        outcome = run_job(config, (Read, SleepingAlign, SleepingInvert, Write))
        seconds = round(time.monotonic() - started, 1)
        _wait_for_none()
    return {"outcome": outcome.to_dict("table"), "job_end": seconds, "trace": trace}


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    print(json.dumps(main(sys.argv[1])), flush=True)
