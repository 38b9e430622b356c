"""On a cluster, whether a job's local paths are the same files on every node.

Where they are not, readers elsewhere find nothing and writers write to disks of their own: each run
would invert again what the table never gets.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import ray
from ray.data import DataContext
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.config import JobConfig
from pipeline.engine.address import in_cluster
from pipeline.errors import ConfigError
from pipeline.storage import canonical_uri, is_local

LOOK_EVERY_S = 5.0
# A network disk may show a new file that much later.
PATIENCE_S = 10


def local_paths(config: JobConfig) -> dict[str, str]:
    """The paths that the nodes of a cluster must see, and the settings that name them.

    All but the output, which nodes that have it see a marker in. A relative path of a model or a
    table is one in the job's working directory, of which each node has a copy.
    """
    paths = {"input": canonical_uri(config.input)}
    for name in ("model", "bootstrap", "init", "identity"):
        if given := getattr(config, name):
            paths[name] = str(Path(given).expanduser()) if is_local(given) else given
    # A model's name is no path.
    return {path: name for name, path in paths.items() if is_local(path) and Path(path).exists()}


def _ask(node: str, paths: list[str]) -> Any:
    """Which of `paths` the node does not have, as the reference of a task there."""

    # An inner function travels as it is: no module is imported for it.
    def missing(paths: list[str], patience: int) -> list[str]:
        import os
        import time

        absent = paths
        for wait in [0, *[1] * patience]:
            time.sleep(wait)
            absent = [path for path in absent if not os.path.lexists(path)]
            if not absent:
                break
        return absent

    strategy = NodeAffinitySchedulingStrategy(node, soft=False)
    task = ray.remote(missing).options(num_cpus=0, max_retries=0, scheduling_strategy=strategy)
    return task.remote(paths, PATIENCE_S)


class SharedPaths:
    """Asks each node, as it comes, whether it has the paths; the driver's own need not be asked."""

    def __init__(self, paths: Mapping[str, str], own: str) -> None:
        self.paths, self._known = dict(paths), {own}
        self._asked: dict[Any, dict[str, Any]] = {}  # task -> its node
        self._looked = -math.inf

    def look(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Raise `ConfigError` if a node has said that it lacks one; called many times a second."""
        if clock() - self._looked < LOOK_EVERY_S:
            return
        self._looked = clock()
        for node in ray.nodes():
            if node["Alive"] and node["NodeID"] not in self._known:
                self._known.add(node["NodeID"])
                self._asked[_ask(node["NodeID"], list(self.paths))] = node
        if self._asked:
            waiting = list(self._asked)
            answered, _ = ray.wait(waiting, num_returns=len(waiting), timeout=0)
            for task in answered:
                self._hear(task, self._asked.pop(task))

    def _hear(self, task: Any, node: Mapping[str, Any]) -> None:
        try:
            absent = ray.get(task)
        except ray.exceptions.RayError:
            self._known.discard(node["NodeID"])  # it is gone, or is asked again
            return
        if absent:
            name = self.paths[absent[0]]
            raise ConfigError(
                f"the {name} is a local path, and the node {node['NodeManagerAddress']} has no "
                f"'{absent[0]}': on several nodes give a URI that all of them reach, or a disk "
                "that all of them have mounted there"
            )


class CheckSharing(ExecutionCallback):
    """Has the nodes of an execution asked."""

    paths: ClassVar[SharedPaths | None] = None

    def on_execution_step(self, executor: Any) -> None:
        """Called by Ray Data."""
        del executor
        if self.paths:
            self.paths.look()


@contextmanager
def sharing_checked(config: JobConfig) -> Iterator[None]:
    """Within the block executions of a cluster end with `ConfigError` where paths are not shared.

    A hidden file in a local output is what other nodes must see; it is gone after the block.
    Enter it before the dataset is made, which takes a copy of Ray Data's settings.
    """
    if not in_cluster():
        yield
        return
    paths, marker = local_paths(config), None
    if is_local(config.output):
        marker = Path(canonical_uri(config.output), f".shared-{secrets.token_hex(4)}.tmp")
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()
        paths[str(marker)] = "output"
    classes = DataContext.get_current().custom_execution_callback_classes
    try:
        if paths:
            CheckSharing.paths = SharedPaths(paths, ray.get_runtime_context().get_node_id())
            CheckSharing.paths.look()
            if CheckSharing not in classes:
                classes.append(CheckSharing)
        yield
    finally:
        CheckSharing.paths = None
        if marker:
            marker.unlink(missing_ok=True)
