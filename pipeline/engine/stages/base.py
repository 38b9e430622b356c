"""The stage interface, and the one adapter that runs a stage in Ray's workers.

The adapter times a stage, turns an exception into a `Failure`, and counts crashes: Ray repeats the
work of a lost worker without end, which is right where a node is lost and wrong for a poison part,
one that kills each process that works on it (a crash below Python, or no memory left). So each
attempt keeps one byte in a file on its node's disk for as long as it lasts. A worker that finds
several bytes refuses the part. Those of a lost node are lost with it.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pipeline.engine.messages import Batch, Failure, Message, Row, from_row, kind_of, to_row
from pipeline.engine.node_registry import wait_for_verdict
from pipeline.engine.private_folder import is_private
from pipeline.machine import memory_limit

if TYPE_CHECKING:
    from pipeline.choices import Device
    from pipeline.engine.resolve import Recipe
    from pipeline.table import TableWriter

# A crash also counts for parts that shared the worker, and workers die for other reasons.
MAX_CRASHES = 5
DIED = "worker processes died at it on this node"  # by this the driver knows such a failure
_CONFIG = "restyle_crashes"  # in Ray Data's context, which every worker of a run gets


@dataclass(frozen=True)
class StageResources:
    """What Ray reserves for one worker of a stage, and how many parts it has at once.

    The CPUs of all stages differ: Ray fuses stages that reserve the same, and a fused shard is
    retried whole.
    """

    worker: str  # what a worker is called in messages
    cpus: float
    takes_gpu: bool = False  # in place of the CPUs, where the job runs on GPUs
    parts_at_once: int = 1
    is_pool: bool = True  # of actors; else tasks


class Stage(ABC):
    """One step of the pipeline: a batch in, a batch out."""

    name: ClassVar[str]
    takes: ClassVar[type[Message]]  # other messages pass through
    resources: ClassVar[StageResources]

    def setup(self) -> None:  # noqa: B027 - most stages need none
        """Load what is slow to load; called once in each worker."""

    @abstractmethod
    def process(self, batch: Any) -> Message | Iterator[Message]:
        """Return the next stage's batch, or several of them."""


class JobStage(Stage):
    """A stage of a job that writes a table."""

    @classmethod
    @abstractmethod
    def of(cls, recipe: Recipe, writer: TableWriter, device: Device) -> Self:
        """Return the stage of a job; it is built on the driver and sent to the workers."""


class Worker:
    """A stage as Ray calls it, row by row."""

    def __init__(self, stage: Stage) -> None:
        wait_for_verdict()
        stage.setup()
        self.stage = stage

    def rows(self, row: Row) -> Iterator[Row]:
        """Yield the rows that the stage makes of `row`."""
        if kind_of(row) is not self.stage.takes:
            yield row
            return
        for message in results(self.stage, from_row(row)):
            yield to_row(message)

    def __call__(self, row: Row) -> Row:
        """Return the one row that the stage makes of `row`."""
        (result,) = self.rows(row)
        return result


def results(stage: Stage, message: Message) -> Iterator[Message]:
    """Yield what `stage` makes of `message`, timed; an error becomes a `Failure`.

    A stage that notes its own seconds is not timed.
    """
    started = time.perf_counter()
    try:
        with crash_counter(stage.name, message.shard_id, message.part):
            made = stage.process(message)
            for result in [made] if isinstance(made, Message) else made:
                if isinstance(result, Batch):
                    seconds = time.perf_counter() - started
                    result.counts.stage_seconds.setdefault(stage.name, seconds)  # type: ignore[arg-type]
                yield result
                started = time.perf_counter()
    except Exception as error:  # noqa: BLE001 - reported to the driver, which fails the run
        yield Failure.of(message, stage.name, error, node_address())


def _ray() -> Any:
    """Return Ray in a process that it started or that joined it, else None.

    Importing it here would come before `pipeline.engine.cluster` has set its environment.
    """
    ray = sys.modules.get("ray")
    return ray if ray is not None and ray.is_initialized() else None


def node_address() -> str:
    """Return the address by which Ray knows this node; "" outside Ray."""
    ray = _ray()
    return "" if ray is None else str(ray.util.get_node_ip_address())


def set_crash_folder(context: Any, private: Path | None) -> None:
    """Tell the workers of a run, by Ray Data's `context`, where to count crashes.

    In the run's `private` folder; without one in the temp directory of each node, under a name that
    no one can guess.
    """
    folder = str(private / "notes") if private else f"restyle-notes-{secrets.token_hex(16)}"
    context.set_config(_CONFIG, folder)


def _open_attempts(name: str) -> tuple[Path, int]:
    """Open the file called `name` for appending; create it and its folder where missing."""
    from ray.data import DataContext

    chosen = DataContext.get_current().get_config(_CONFIG) or f"restyle-notes-{os.geteuid()}"
    folder = Path(tempfile.gettempdir(), chosen)
    while True:
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        if not is_private(folder):
            raise RuntimeError(f"'{folder}' is not a folder that this user alone may enter")
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        with suppress(FileNotFoundError):  # another worker removed the empty folder in between
            return folder / name, os.open(folder / name, flags, 0o600)


@contextmanager
def crash_counter(stage: str, shard_id: str, part: int) -> Iterator[None]:
    """Count the attempt at a part for the length of the block; outside Ray nothing is counted.

    Raises `RuntimeError` for a poison part: `MAX_CRASHES` workers of this node died at it.
    """
    if _ray() is None:
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
                f"{crashes} {DIED}, of a crash below Python or as memory ran out "
                f"({memory_limit() / 1e9:.1f} GB may be used): lower "
                "--align-workers or --inverters, --batch-size, --max-pixels"
            )
        yield
    finally:
        path.unlink(missing_ok=True)
        with suppress(OSError):  # other attempts are there
            path.parent.rmdir()
