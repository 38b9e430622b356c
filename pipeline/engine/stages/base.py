"""Stage interface, and the adapter that runs a stage in Ray's workers.

The adapter times a stage, turns an exception into a `Failure`, and counts crashes. Ray repeats the
work of a dead worker without limit. That is right for a lost node, but wrong for a poison part: one
that kills each process that works on it (a crash in native code, or out of memory). So each attempt
appends one byte to a file on its node's disk, and deletes the file at its end. A worker that finds
`MAX_CRASHES` bytes refuses the part. The files of a lost node are lost with it.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pipeline.engine.address import running_ray
from pipeline.engine.messages import Batch, Failure, Message, Row, from_row, kind_of, to_row
from pipeline.engine.nodes.node_registry import wait_for_verdict
from pipeline.engine.private_folder import is_private
from pipeline.machine import memory_limit

# Above 1, as a crash also counts for other parts in the worker, and workers die for other reasons.
MAX_CRASHES = 5
DIED = "worker processes died at it on this node"  # the driver recognizes the failure by it
_CONFIG = "restyle_crashes"  # in Ray Data's context, which every worker of a run gets


@dataclass(frozen=True)
class StageResources:
    """Resources that Ray reserves for one worker of a stage, and its number of parts at once.

    Each stage reserves another number of CPUs: Ray fuses stages that reserve the same, and would
    then retry a whole shard.
    """

    worker: str  # name of a worker in messages
    cpus: float
    takes_gpu: bool = False  # instead of CPUs, if the job runs on GPUs
    parts_at_once: int = 1
    is_pool: bool = True  # a pool of actors; else tasks


class Stage(ABC):
    """Step of the pipeline: takes a batch, returns a batch."""

    name: ClassVar[str]
    takes: ClassVar[type[Message]]  # other messages pass through
    resources: ClassVar[StageResources]

    def setup(self) -> None:  # noqa: B027 - most stages need none
        """Load models and other slow parts; called once per worker."""

    @abstractmethod
    def process(self, batch: Any) -> Message | Iterator[Message]:
        """Return the batch for the next stage, or yield several."""


class Worker:
    """Adapter that Ray calls row by row."""

    def __init__(self, stage: Stage) -> None:
        wait_for_verdict()
        stage.setup()
        self.stage = stage

    def rows(self, row: Row) -> Iterator[Row]:
        """Yield the output rows of the stage for `row`."""
        if kind_of(row) is not self.stage.takes:
            yield row
            return
        for message in results(self.stage, from_row(row)):
            yield to_row(message)

    def __call__(self, row: Row) -> Row:
        """Return the single output row of the stage for `row`."""
        (result,) = self.rows(row)
        return result


def results(stage: Stage, message: Message) -> Iterator[Message]:
    """Yield the outputs of `stage` for `message`, with its seconds; an error becomes a `Failure`.

    Seconds that the stage has set itself stay.
    """
    started = time.perf_counter()
    try:
        with crash_counter(stage.name, message.shard_id, message.part):
            outputs = stage.process(message)
            for result in [outputs] if isinstance(outputs, Message) else outputs:
                if isinstance(result, Batch):
                    seconds = time.perf_counter() - started
                    result.counts.stage_seconds.setdefault(stage.name, seconds)  # type: ignore[arg-type]
                yield result
                started = time.perf_counter()
    except Exception as error:  # noqa: BLE001 - reported to the driver, which fails the run
        ray = running_ray()
        node = str(ray.util.get_node_ip_address()) if ray else ""
        yield Failure.of(message, stage.name, error, node)


def set_crash_folder(context: Any, private: Path | None) -> None:
    """Set in Ray Data's `context` the folder in which the workers of a run count crashes.

    It is in the run's `private` folder; without one it is in the temp directory of each node, under
    a random name.
    """
    folder = str(private / "notes") if private else f"restyle-notes-{secrets.token_hex(16)}"
    context.set_config(_CONFIG, folder)


def _open_attempts(name: str) -> tuple[Path, int]:
    """Open the file `name` for appending; create it and its folder if missing."""
    from ray.data import DataContext

    chosen = DataContext.get_current().get_config(_CONFIG) or f"restyle-notes-{os.geteuid()}"
    folder = Path(tempfile.gettempdir(), chosen)
    while True:
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        with suppress(FileNotFoundError):  # another worker removed the empty folder meanwhile
            if not is_private(folder):
                raise RuntimeError(
                    f"'{folder}' is not a folder that only this user may enter; delete it"
                )
            return folder / name, os.open(folder / name, flags, 0o600)


@contextmanager
def crash_counter(stage: str, shard_id: str, part: int) -> Iterator[None]:
    """Count one attempt at a part for the length of the block; does nothing outside Ray.

    Raises `RuntimeError` for a poison part, at which `MAX_CRASHES` workers of this node died.
    """
    if running_ray() is None:
        yield
        return
    name = hashlib.sha256(f"{stage}\0{shard_id}\0{part}".encode()).hexdigest()[:32]
    path, descriptor = _open_attempts(name)
    try:
        with os.fdopen(descriptor, "ab") as file:
            crashes = file.tell()
            file.write(b".")
        if crashes >= MAX_CRASHES:
            raise RuntimeError(
                f"{crashes} {DIED}, by a crash in native code or out of memory "
                f"({memory_limit() / 1e9:.1f} GB may be used): lower "
                "--align-workers or --inverters, --batch-size, --max-pixels"
            )
        yield
    finally:
        path.unlink(missing_ok=True)
        with suppress(OSError):  # it holds other attempts
            path.parent.rmdir()
