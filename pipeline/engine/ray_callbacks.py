"""What a run sets in Ray for its own length: callbacks, Ray Data's settings, Ray's own lines.

Ray Data builds the callback classes of its context for each execution and pickles the context with
every task. So one class, `RunCallbacks`, stands there, and looks up what a run asked for by the key
that the run's copy of the context holds: runs of one process do not call each other's functions.
"""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants, worker
from ray.data import DataContext
from ray.data._internal.execution.execution_callback import ExecutionCallback

from pipeline.engine.address import in_cluster, shows_ray_log
from pipeline.engine.stages.base import set_crash_folder
from pipeline.errors import ClusterError

# The releases of Ray on which the engine is tested, as pyproject.toml has them.
TESTED_RAY = ((2, 57), (2, 60))
Hook = Callable[[Any], None]  # takes Ray Data's executor

# A pool without an actor for so long ends the run; a node takes minutes to come and load a model.
NO_ACTOR_S = 1800.0
_RUN = "restyle_run"  # in Ray Data's context


@dataclass(frozen=True)
class _Hooks:
    starts: tuple[Hook, ...]
    steps: tuple[Hook, ...]


_runs: dict[str, _Hooks] = {}


class RunCallbacks(ExecutionCallback):
    """Calls the functions of the run that an execution belongs to."""

    def before_execution_starts(self, executor: Any) -> None:
        """Called by Ray Data."""
        if hooks := _hooks(executor):
            for start in hooks.starts:
                start(executor)

    def on_execution_step(self, executor: Any) -> None:
        """Called by Ray Data, many times a second."""
        if hooks := _hooks(executor):
            for step in hooks.steps:
                step(executor)


def _hooks(executor: Any) -> _Hooks | None:
    return _runs.get(executor._data_context.get_config(_RUN))


@contextmanager
def run_settings(
    folder: Path | None = None, steps: Sequence[Hook] = (), *, nodes_may_come: bool = False
) -> Iterator[None]:
    """Configure Ray Data for the datasets that are made, and run, inside the block.

    One row per block, no progress bars, no per-block statistics, no limit of Ray's on the time
    without progress, and on a cluster an autoscaler that follows the backlog. What waits between
    the stages is bounded by Ray Data: half of the object store that there is at the time, which it
    overshoots by about 30 %. `folder` is the run's private one, if it has one; `steps` are called
    at each step of Ray Data's loop; `nodes_may_come` says whether an autoscaler may start nodes.
    """
    context, key = DataContext.get_current().copy(), secrets.token_hex(8)
    set_crash_folder(context, folder)
    context.set_config(_RUN, key)
    context.target_max_block_size = 1
    context.print_on_execution_start = False
    context.enable_progress_bars = False
    if hasattr(context, "execution_no_progress_timeout_s"):  # not in Ray 2.57
        context.execution_no_progress_timeout_s = -1  # off
    if RunCallbacks not in context.custom_execution_callback_classes:
        context.custom_execution_callback_classes.append(RunCallbacks)
    own_steps = (_forget_block_stats, StallDetector().check)
    _runs[key] = _Hooks(_starts(nodes_may_come), (*own_steps, *steps))
    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with DataContext.current(context):
            yield
    finally:
        logger.setLevel(level)
        del _runs[key]


def _starts(nodes_may_come: bool) -> tuple[Hook, ...]:
    if not in_cluster():
        return ()
    from pipeline.engine.ray_autoscaler import scale_by_backlog

    return (partial(scale_by_backlog, nodes_may_come=nodes_may_come),)


def _forget_block_stats(executor: Any) -> None:
    """Drop what Ray Data keeps of every block for `Dataset.stats()`: it grows with the parts."""
    for operator in executor._topology:
        if kept := getattr(operator, "_output_blocks_stats", None):
            kept.clear()


class StallDetector:
    """Ends a run that waits for nodes that never come.

    Ray Data's own limit ends a run in which no block has moved for half an hour, which an inverter
    at one part can take: 256 faces of 300 iterations are 47 minutes of a core. What counts here is
    whether each pool has an actor, or had one a short time ago.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last_active: dict[Any, float] = {}  # operator -> when it last had an actor, or began

    def check(self, executor: Any) -> None:
        """Raise `ClusterError` where a pool had no actor for `NO_ACTOR_S`."""
        now = self._clock()
        for operator in list(executor._topology):
            pools = operator.get_autoscaling_actor_pools()
            if not pools or operator.has_execution_finished() or operator.get_actor_info().running:
                self._last_active[operator] = now
            elif now - self._last_active.setdefault(operator, now) >= NO_ACTOR_S:
                needs = pools[0].per_actor_resource_usage()
                wanted = "a GPU" if needs.gpu else f"{needs.cpu:g} CPUs"
                raise ClusterError(
                    f"no node with {wanted} to spare for '{operator.name}' came in "
                    f"{NO_ACTOR_S / 60:g} minutes (`ray status` says what is pending); run again"
                )


def failure_handling() -> Any:
    """Return Ray Train's module of failure policies; it reads its environment when imported."""
    from ray.train.v2._internal.execution import failure_handling

    return failure_handling


def untested_ray(version: str = ray.__version__) -> str:
    """Return one line about a Ray outside the releases that were tested; "" for one inside."""
    first, last = TESTED_RAY
    if first <= tuple(map(int, version.split(".")[:2])) <= last:
        return ""
    tested = " to ".join(".".join(map(str, release)) for release in TESTED_RAY)
    return f"Ray {version} is not tested with this package, {tested} are"


@contextmanager
def loopback_only() -> Iterator[None]:
    """Let a Ray that starts inside the block take 127.0.0.1 for its address, and listen there only.

    `ray.init` replaces a loopback address that it is given by that of an interface, but for this
    switch, which stands for machines where Ray knows no clusters.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def ray_without_signal_handlers() -> Iterator[None]:
    """Let a Ray that starts in the block install no C++ signal handlers in this process.

    They print a trace of a crash. As Ray shuts down it gives SIGTERM and others their default
    action in their place, past Python: a SIGTERM that comes then ends this process at once, and
    leaves processes of Ray behind. The workers keep them.
    """
    # Older releases of Ray lack the setting, and keep their handlers.
    before = getattr(ray_constants, "RAY_DISABLE_FAILURE_SIGNAL_HANDLER", False)
    ray_constants.RAY_DISABLE_FAILURE_SIGNAL_HANDLER = True
    try:
        yield
    finally:
        ray_constants.RAY_DISABLE_FAILURE_SIGNAL_HANDLER = before


def ray_log_folder() -> str | None:
    """Return the folder of the logs of the Ray that runs here; None where there is none."""
    return None if worker._global_node is None else str(worker._global_node.get_logs_dir_path())


@contextmanager
def ray_lines_in_file() -> Iterator[None]:
    """Write what Ray itself prints in this process to a file beside its other logs.

    Ray prints of each worker that ends (`(raylet) A worker died ...`, on stdout), of tasks that it
    repeats, and of failures with hundreds of lines; the run says what of it matters. Nothing is
    changed where no Ray runs, or where its lines are to be shown.
    """
    folder = ray_log_folder()
    if folder is None or shows_ray_log():
        yield
        return
    handler = _file_handler(folder)
    printing, worker.print_to_stdstream = worker.print_to_stdstream, _printer(handler)
    replaced = list(_replace_consoles(handler))
    try:
        yield
    finally:
        worker.print_to_stdstream = printing
        for logger, console in replaced:
            logger.removeHandler(handler)
            logger.addHandler(console)
        handler.close()


def _file_handler(folder: str) -> logging.Handler:
    handler: logging.Handler = logging.NullHandler()
    with suppress(OSError):  # a cluster's folder that belongs to another user
        handler = logging.FileHandler(Path(folder, f"restyle-{os.getpid()}.log"))
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    return handler


def _printer(handler: logging.Handler) -> Any:
    """Return a function in place of Ray's own printing of the lines of other processes."""

    def write(data: dict[str, Any], *_: Any, **__: Any) -> None:
        for line in data["lines"]:
            text = f"({data.get('pid')}) {line}"
            handler.handle(logging.LogRecord("ray", logging.ERROR, "", 0, text, None, None))

    return write


def _replace_consoles(handler: logging.Handler) -> Iterator[tuple[logging.Logger, logging.Handler]]:
    """Replace each console of Ray's loggers by `handler`; yields what was replaced."""
    names = [name for name in logging.root.manager.loggerDict if name.split(".")[0] == "ray"]
    for logger in map(logging.getLogger, names):
        for console in [*logger.handlers]:
            is_console = isinstance(console, logging.StreamHandler)
            if is_console and not isinstance(console, logging.FileHandler):
                logger.removeHandler(console)
                logger.addHandler(handler)
                yield logger, console
