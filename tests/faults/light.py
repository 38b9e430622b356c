"""Run without Ray: the real plan, reader, writer and ledger in one process, in order.

It is forked from a process that has everything imported, so that it starts in a tenth of a second
and can be killed, stopped or starved like a driver.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import JobConfig
from pipeline.engine import run as engine_run
from pipeline.engine.ledger import Ledger
from pipeline.engine.messages import from_row, to_row
from pipeline.engine.stages import build_stages
from pipeline.engine.stages.base import Worker, results
from pipeline.errors import PipelineError, RequestError
from pipeline.storage import store as disk
from pipeline.table import part_index
from tests.faults.stages import HASHED

FILE_LIMIT = "FAULTS_FILE_LIMIT"  # maximum bytes of a file
POINTS = ("before", "torn", "whole", "after")


@dataclass(frozen=True)
class Wreck:
    """Signal that the run sends to itself at a point of its n-th write of a name to a disk.

    `before` anything is written; `torn`: half the bytes are in the temporary file; `whole`: all of
    them, before the file is renamed; `after` it is renamed.
    """

    folder: str  # latents, rejects, _shards
    nth: int
    point: str
    signal: int
    then_killed: bool = False  # right after the rename: the file stays

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
    session: Any = None,
) -> None:
    """Replacement of the engine's `_execute`: the same stages and ledger, without Ray."""
    del config, session
    ledger = Ledger(plan, outcome, listeners)
    read, *others = build_stages(stages, plan.job, plan.writer, "cpu")
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
    """Make this process's writes trigger `wreck`."""
    original = disk._complete_file
    count = 0

    def strike(point: str) -> None:
        if count != wreck.nth or wreck.point != point:
            return
        if wreck.signal == signal.SIGSTOP:
            # To this thread: another one may take a process's signal after this one has gone on.
            signal.pthread_kill(threading.get_ident(), wreck.signal)
        else:
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
    settings: Mapping[str, Any], environment: Mapping[str, str], wreck: Wreck | None, report: str
) -> None:
    """Run to the end; write the result of `jobs/invert_dataset.py` to the file `report`."""
    os.environ.update(environment)
    with Path(report).with_suffix(".err").open("wb") as err:
        os.dup2(err.fileno(), 2)
    if limit := os.environ.get(FILE_LIMIT):
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    engine_run._execute = execute_in_order
    part_index.PARTS_INDEXED_AT_ONCE = 2  # small, so that every run continues from indexed parts
    if wreck:
        plant(wreck)
    sys.exit(_run(settings, Path(report)))


def _run(settings: Mapping[str, Any], report: Path) -> int:
    config = JobConfig.model_validate(settings)
    try:
        outcome = engine_run.run_job(config, HASHED)
    except PipelineError as error:
        report.write_text(f"{type(error).__name__}: {error}")
        return 2 if isinstance(error, RequestError) else 1
    report.write_text(json.dumps(outcome.to_dict(config.output)))
    return outcome.exit_code


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    planted = Wreck(**given["wreck"]) if given["wreck"] else None
    main(given["settings"], {}, planted, given["report"])
