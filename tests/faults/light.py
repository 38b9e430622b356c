"""A run without Ray: the real plan, reader, writer and ledger in one process, in order.

It is forked from a process that has everything imported, so that it starts in a tenth of a second
and can be killed, stopped or starved as a driver can.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import JobConfig
from pipeline.engine import run as engine_run
from pipeline.engine.ledger import Ledger
from pipeline.engine.messages import from_row, to_row
from pipeline.engine.stages.base import Worker, results
from pipeline.errors import PipelineError, RequestError
from pipeline.storage import store as disk
from pipeline.table import part_index
from tests.faults.stages import HASHED

FILE_LIMIT = "FAULTS_FILE_LIMIT"  # bytes that a file may have
POINTS = ("before", "torn", "whole", "after")


@dataclass(frozen=True)
class Wreck:
    """A signal that the run sends itself at a point of its n-th write to a disk under a name.

    `before` anything is written; `torn`: half the bytes are in the temporary file; `whole`: all of
    them, and the file has not got its name; `after`: it has.
    """

    folder: str  # latents, rejects, _shards
    nth: int
    point: str
    signal: int
    then_killed: bool = False  # as soon as the file has its name: it is not taken back

    def __str__(self) -> str:
        name = signal.Signals(self.signal).name
        return f"{name} {self.point} put {self.nth} in {self.folder}/"


def execute_in_order(
    config: JobConfig,
    plan: Any,
    outcome: Any,
    listeners: tuple[Any, ...] = (),
    *,
    stages: Any,
    pretended_gpus: int | None = None,
) -> None:
    """Stands in for the engine's `_execute`: the same stages and ledger, no Ray."""
    del config, pretended_gpus
    ledger = Ledger(plan, outcome, listeners)
    read, *others = [stage.of(plan.recipe, plan.writer, "cpu") for stage in stages]
    workers = [Worker(stage) for stage in others]
    try:
        for task in plan.tasks:
            for message in results(read, task):
                row = to_row(message)
                for worker in workers:
                    row = worker(row)
                ledger.take(from_row(row))
        ledger.finish()
    finally:
        ledger.abandon()
    if plan.error:
        raise plan.error


def plant(wreck: Wreck) -> None:
    """Put `wreck` into this process's way of writing files."""
    original = disk._complete_file
    count = 0

    def strike(point: str) -> None:
        if count == wreck.nth and wreck.point == point:
            os.kill(os.getpid(), wreck.signal)

    @contextmanager
    def wrecked(target: Path, content: bytes) -> Iterator[Path]:
        nonlocal count
        if target.parent.name != wreck.folder:
            with original(target, content) as temporary:
                yield temporary
            return
        count += 1
        strike("before")
        if count == wreck.nth and wreck.point == "torn":
            target.parent.mkdir(parents=True, exist_ok=True)
            target.with_name(f".{target.name}.torn.tmp").write_bytes(content[: len(content) // 2])
        strike("torn")
        with original(target, content) as temporary:
            strike("whole")
            yield temporary
        strike("after")
        if count == wreck.nth and wreck.then_killed:
            os.kill(os.getpid(), signal.SIGKILL)

    disk._complete_file = wrecked


def main(
    settings: Mapping[str, Any], environment: Mapping[str, str], wreck: Wreck | None, told: str
) -> None:
    """Run to the end; the file `told` gets what `jobs/invert_dataset.py` would say."""
    os.environ.update(environment)
    with Path(told).with_suffix(".err").open("wb") as err:
        os.dup2(err.fileno(), 2)
    if limit := os.environ.get(FILE_LIMIT):
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    engine_run._execute = execute_in_order
    part_index.PARTS_INDEXED_AT_ONCE = 2  # so that every run starts from what others left there
    if wreck:
        plant(wreck)
    sys.exit(_run(settings, Path(told)))


def _run(settings: Mapping[str, Any], told: Path) -> int:
    config = JobConfig.model_validate(settings)
    try:
        outcome = engine_run.run_job(config, HASHED)
    except PipelineError as error:
        told.write_text(f"{type(error).__name__}: {error}")
        return 2 if isinstance(error, RequestError) else 1
    told.write_text(json.dumps(outcome.to_dict(config.output)))
    return outcome.exit_code


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    planted = Wreck(**given["wreck"]) if given["wreck"] else None
    main(given["settings"], {}, planted, given["told"])
