"""Settings in Ray for the length of a run: callbacks, Ray Data's context, Ray's own output.

Ray Data creates the callback classes in its context for each execution, and pickles the context
with every task. So the context holds one class, `RunCallbacks`, and a key that is unique to the
run; the class looks up the functions of the run by that key. Runs of one process stay apart.
"""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants, worker
from ray._private.node import Node
from ray.data import DataContext
from ray.data._internal.execution.execution_callback import ExecutionCallback

from pipeline.engine.address import shows_ray_log
from pipeline.engine.ray_autoscaler import install_autoscaler
from pipeline.engine.stages.base import set_crash_folder
from pipeline.errors import ClusterError

# Releases of Ray that the engine is tested on, as in pyproject.toml.
TESTED_RAY = ((2, 57), (2, 60))
Hook = Callable[[Any], None]  # takes Ray Data's executor

# A pool without an actor for this long ends the run; a node takes minutes to start.
NO_ACTOR_S = 1800.0
_RUN = "restyle_run"  # in Ray Data's context


@dataclass(frozen=True)
class _Hooks:
    on_start: Hook
    on_step: tuple[Hook, ...]
    executors: list[Any] = field(default_factory=list)


_runs: dict[str, _Hooks] = {}


class RunCallbacks(ExecutionCallback):
    """Calls the hooks of the run that an execution belongs to."""

    def before_execution_starts(self, executor: Any) -> None:
        """Call the run's start hook."""
        if hooks := _hooks(executor):
            hooks.executors.append(executor)
            hooks.on_start(executor)

    def on_execution_step(self, executor: Any) -> None:
        """Call the run's step hooks; many times per second."""
        if hooks := _hooks(executor):
            for step in hooks.on_step:
                step(executor)


def _hooks(executor: Any) -> _Hooks | None:
    return _runs.get(executor._data_context.get_config(_RUN))


@contextmanager
def run_settings(
    folder: Path | None = None, steps: Sequence[Hook] = (), *, nodes_may_come: bool = False
) -> Iterator[None]:
    """Configure Ray Data for the datasets that are created and run inside the block, and end these.

    One row per block, no progress bars, no per-block statistics, no stall timeout, and on a cluster
    backlog-based autoscaling. Ray Data bounds the data between stages to half of the object store,
    which it exceeds by about 30 %. `folder` is the run's private folder, if any; `steps` are called
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
    on_start = partial(install_autoscaler, nodes_may_come=nodes_may_come)
    _runs[key] = _Hooks(on_start, (_forget_block_stats, StallDetector().check, *steps))
    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with DataContext.current(context):
            yield
    finally:
        logger.setLevel(level)
        for executor in _runs.pop(key).executors:
            # Here, as a traceback may hold it: collected after Ray it would start Ray again.
            executor.shutdown(force=False)


def _forget_block_stats(executor: Any) -> None:
    """Clear the per-block data of `Dataset.stats()`, which grows with the number of parts."""
    for operator in executor._topology:
        if kept := getattr(operator, "_output_blocks_stats", None):
            kept.clear()


class StallDetector:
    """Ends a run that waits for nodes that never start.

    Ray Data's own limit ends a run in which no block has moved for half an hour, but an inverter
    may take longer for one part: 256 faces of 300 iterations are 47 minutes of a core. This one
    checks whether each pool has, or recently had, an actor.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # Operator -> time when it last had an actor, or began.
        self._last_active: dict[Any, float] = {}

    def check(self, executor: Any) -> None:
        """Raise `ClusterError` if a pool had no actor for `NO_ACTOR_S`."""
        now = self._clock()
        for operator in list(executor._topology):
            pools = operator.get_autoscaling_actor_pools()
            if not pools or operator.has_execution_finished() or operator.get_actor_info().running:
                self._last_active[operator] = now
            elif now - self._last_active.setdefault(operator, now) >= NO_ACTOR_S:
                needs = pools[0].per_actor_resource_usage()
                resource = "a GPU" if needs.gpu else f"{needs.cpu:g} CPUs"
                raise ClusterError(
                    f"no node with {resource} free for '{operator.name}' joined within "
                    f"{NO_ACTOR_S / 60:g} minutes (`ray status` says what is pending); run again"
                )


def failure_handling() -> Any:
    """Return Ray Train's module of failure policies; importing it reads the environment."""
    from ray.train.v2._internal.execution import failure_handling

    return failure_handling


def untested_ray(version: str = ray.__version__) -> str:
    """Return a warning if Ray is not a tested release, else ""."""
    first, last = TESTED_RAY
    if first <= tuple(map(int, version.split(".")[:2])) <= last:
        return ""
    tested = " to ".join(".".join(map(str, release)) for release in TESTED_RAY)
    return f"Ray {version} is not tested with this package, {tested} are"


@contextmanager
def _replaced(owner: object, **values: Any) -> Iterator[None]:
    """Set attributes of `owner` for the length of the block; those that it lacks stay absent."""
    before = {name: getattr(owner, name) for name in values if hasattr(owner, name)}
    for name in before:
        setattr(owner, name, values[name])
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


def loopback_only() -> AbstractContextManager[None]:
    """Make a Ray that starts inside the block listen on 127.0.0.1 only.

    `ray.init` replaces a loopback address by that of a network interface, unless this switch says
    that the machine does not support Ray clusters.
    """
    return _replaced(ray_constants, ENABLE_RAY_CLUSTER=False)


# Processes of a head node that a local Ray does not need: they copy the lines of workers to a
# driver, start nodes, and serve the dashboard. Each is a Python process of a second's work, and
# `ray.init` waits for the last one.
_UNUSED_PROCESSES = ("start_log_monitor", "start_monitor", "start_api_server")


def without_unused_processes() -> AbstractContextManager[None]:
    """Start a local Ray inside the block without processes that its run does not use.

    With RESTYLE_RAY_LOG the log monitor starts, because it passes on the lines of the workers.
    """
    unused = _UNUSED_PROCESSES[1:] if shows_ray_log() else _UNUSED_PROCESSES
    return _replaced(Node, **dict.fromkeys(unused, lambda *_, **__: None))


def ray_without_signal_handlers() -> AbstractContextManager[None]:
    """Keep a Ray that starts inside the block from installing C++ signal handlers in this process.

    They print a trace of a crash. When Ray shuts down it resets SIGTERM and others to their default
    action, bypassing Python: a SIGTERM then kills this process at once and leaves Ray processes
    behind. Workers keep the handlers.
    """
    # Older releases of Ray lack the setting and always install the handlers.
    return _replaced(ray_constants, RAY_DISABLE_FAILURE_SIGNAL_HANDLER=True)


def ray_log_folder() -> str | None:
    """Return the log folder of the Ray in this process; None if none runs."""
    return None if worker._global_node is None else str(worker._global_node.get_logs_dir_path())


@contextmanager
def ray_lines_in_file() -> Iterator[None]:
    """Redirect what Ray prints in this process to a file in its log folder.

    Ray prints a line for each worker that ends (`(raylet) A worker died ...`, on stdout) and for
    repeated tasks, and hundreds of lines for failures; the run itself reports what matters. Does
    nothing if no Ray runs, or if RESTYLE_RAY_LOG asks for these lines.
    """
    folder = ray_log_folder()
    if folder is None or shows_ray_log():
        yield
        return
    handler = _file_handler(folder)
    original, worker.print_to_stdstream = worker.print_to_stdstream, _printer(handler)
    replaced = list(_replace_consoles(handler))
    try:
        yield
    finally:
        worker.print_to_stdstream = original
        for logger, console in replaced:
            logger.removeHandler(handler)
            logger.addHandler(console)
        handler.close()


def _file_handler(folder: str) -> logging.Handler:
    handler: logging.Handler = logging.NullHandler()
    with suppress(OSError):  # the log folder of a cluster may belong to another user
        handler = logging.FileHandler(Path(folder, f"restyle-{os.getpid()}.log"))
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    return handler


def _printer(handler: logging.Handler) -> Any:
    """Return a replacement of Ray's function that prints the lines of other processes."""

    def write(data: dict[str, Any], *_: Any, **__: Any) -> None:
        for line in data["lines"]:
            text = f"({data.get('pid')}) {line}"
            handler.handle(logging.LogRecord("ray", logging.ERROR, "", 0, text, None, None))

    return write


def _replace_consoles(handler: logging.Handler) -> Iterator[tuple[logging.Logger, logging.Handler]]:
    """Replace each console handler of Ray's loggers by `handler`; yield (logger, old handler)."""
    names = [name for name in logging.root.manager.loggerDict if name.split(".")[0] == "ray"]
    for logger in map(logging.getLogger, names):
        for console in [*logger.handlers]:
            is_console = isinstance(console, logging.StreamHandler)
            if is_console and not isinstance(console, logging.FileHandler):
                logger.removeHandler(console)
                logger.addHandler(handler)
                yield logger, console
