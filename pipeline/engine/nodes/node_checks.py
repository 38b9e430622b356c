"""Check each node of a cluster, at the start or when it joins, before it works for a job.

A node with other code or packages would write other numbers, one that lacks a local path would
write to its own disk: such a node ends the run with an error that names it. A node that cannot
reach the storage is not used, and the run continues on the others.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
from ray.data import DataContext
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.config import JobConfig
from pipeline.engine.address import in_cluster
from pipeline.engine.console.pending import ClusterState
from pipeline.engine.console.progress import Progress, enter_phase
from pipeline.engine.nodes.node_registry import running_registry
from pipeline.engine.nodes.node_report import NodeReport, code_digest, versions
from pipeline.errors import ClusterError, ConfigError
from pipeline.storage import canonical_uri, is_local, one_line

POLL_EVERY_S = 5.0
# The stages start when the first nodes have answered, or after this time.
FIRST_ANSWERS_S = 120.0
# A network disk may show a new file with this delay.
PATIENCE_S = 10
MAX_BLOCKERS = 32  # per node, for its CPUs; each is a process


def local_paths(config: JobConfig) -> dict[str, str]:
    """Return the local paths that every node must have, each with the setting that names it.

    The output is not among them: it is checked by a marker file. A relative path of a model or a
    table is in the job's working directory, which each node has a copy of.
    """
    paths = {"input": canonical_uri(config.input)}
    if config.target:
        paths["target"] = canonical_uri(config.target)
    for name in ("model", "bootstrap", "init", "identity"):
        if given := getattr(config, name):
            paths[name] = str(Path(given).expanduser()) if is_local(given) else given
    # A setting may also be the name of a bundled model.
    return {path: name for name, path in paths.items() if is_local(path) and Path(path).exists()}


def _ask(node: str, paths: Sequence[str], table: str) -> Any:
    """Start a task on the node; its result is the `NodeReport`, or the text of an import error."""

    # Ray pickles an inner function by value: the node may lack the package.
    def report(paths: Sequence[str], table: str, patience_s: int) -> NodeReport | str:
        try:
            import pipeline.engine.stages  # noqa: F401 - what a worker imports
            from pipeline.engine.nodes.node_report import node_report
        except ImportError as error:
            return f"{type(error).__name__}: {error}"
        return node_report(paths, table, patience_s)

    strategy = NodeAffinitySchedulingStrategy(node, soft=False)
    task = ray.remote(report).options(num_cpus=0, max_retries=0, scheduling_strategy=strategy)
    return task.remote(paths, table, PATIENCE_S)


class NodeChecks:
    """Checks each node of a cluster as it joins; keeps work off nodes without access to storage."""

    def __init__(
        self,
        paths: Mapping[str, str],  # local path -> the setting that names it
        table: str = "",  # URI in object storage that every node must reach
        notice: Callable[[str], None] = lambda _: None,  # takes a line for the user
        registry: Any = None,  # handle of a `NodeRegistry`, where workers wait for a verdict
    ) -> None:
        self.paths, self.table, self.notice = dict(paths), table, notice
        self.registry = registry
        self._seen: set[str] = set()
        self._retries_request: Any = None
        self._retries = 0
        self._alive: dict[str, str] = {}  # id -> address
        self._pending: dict[Any, str] = {}  # task -> id of its node
        self.unusable: dict[str, str] = {}  # node id -> reason
        self._blockers: list[Any] = []
        self._polled = -math.inf

    def poll(self) -> None:
        """Check new nodes and handle the answers of others; called many times per second.

        Raises `ConfigError` if a node must not work for this job, `ClusterError` if none can.
        """
        if time.monotonic() - self._polled < POLL_EVERY_S:
            return
        self._polled = time.monotonic()
        alive = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
        for lost in self._alive.keys() - alive.keys():
            self.notice(f"node {self._alive.pop(lost)} is lost: its parts are repeated")
            self.unusable.pop(lost, None)
        for node_id in alive.keys() - self._alive.keys():
            self._seen.add(node_id)
            self._alive[node_id] = str(alive[node_id]["NodeManagerAddress"])
            self._pending[_ask(node_id, list(self.paths), self.table)] = node_id
        if self._pending:
            waiting = list(self._pending)
            answered, _ = ray.wait(waiting, num_returns=len(waiting), timeout=0)
            for task in answered:
                self._handle_answer(task, self._pending.pop(task), alive)
        self._count_retries()
        if Progress.current:
            Progress.current.cluster = self._state(alive)

    def _count_retries(self) -> None:
        """Update the number of storage retries of the workers, without waiting."""
        if self.registry is None:
            return
        if self._retries_request is not None:
            if not ray.wait([self._retries_request], timeout=0)[0]:
                return
            with suppress(ray.exceptions.RayError):  # the count is for display only
                self._retries = ray.get(self._retries_request)
        self._retries_request = self.registry.retries.remote()

    def _state(self, alive: Mapping[str, Mapping[str, Any]]) -> ClusterState:
        used = [node["Resources"] for key, node in alive.items() if key not in self.unusable]
        return ClusterState(
            alive=len(alive),
            seen=len(self._seen),
            unused=len(alive) - len(used),
            cpus=sum(node.get("CPU", 0.0) for node in used),
            gpus=sum(node.get("GPU", 0.0) for node in used),
            retries=self._retries,
        )

    def wait(self, seconds: float = FIRST_ANSWERS_S) -> None:
        """Poll until every current node has answered, for at most `seconds`."""
        deadline = time.monotonic() + seconds
        self.poll()
        while self._pending and time.monotonic() < deadline:
            ray.wait(list(self._pending), num_returns=1, timeout=deadline - time.monotonic())
            self._polled = -math.inf
            self.poll()

    def _handle_answer(
        self, task: Any, node_id: str, alive: Mapping[str, Mapping[str, Any]]
    ) -> None:
        address = self._alive.get(node_id, node_id)
        try:
            report = ray.get(task)
        except ray.exceptions.RayError as error:
            if node_id in alive and isinstance(error, ray.exceptions.RayTaskError):
                raise ConfigError(f"node {address} cannot work: {one_line(error)}") from error
            self._alive.pop(node_id, None)  # lost, or checked again if still alive
            return
        if isinstance(report, str):
            raise ConfigError(
                f"node {address} lacks this package or one that it needs ({report}): install it "
                "there, or send the code along by `ray job submit --working-dir .`"
            )
        self._compare(address, report)
        if self.registry is not None:  # its workers wait for the verdict
            self.registry.judge.remote(node_id, not report.storage_error)
        if report.storage_error:
            self._block(node_id, address, report.storage_error, alive)

    def _compare(self, address: str, report: NodeReport) -> None:
        ours = versions()
        other = {
            name: (ours[name], report.versions[name])
            for name in ours.keys() & report.versions.keys()
            if ours[name] != report.versions[name]
        }
        if other:
            listed = ", ".join(f"{name} {b} (here {a})" for name, (a, b) in sorted(other.items()))
            raise ConfigError(f"node {address} has other packages, so other numbers: {listed}")
        if report.code != code_digest():
            raise ConfigError(
                f"node {address} has other code of this package (digest {report.code}, here "
                f"{code_digest()}), so other numbers: bring all nodes to one state, or send the "
                "code along by `ray job submit --working-dir .`"
            )
        if report.absent:
            path = report.absent[0]
            raise ConfigError(
                f"the {self.paths[path]} is a local path, and the node {address} has no "
                f"'{path}': on several nodes give a URI that all of them reach, or a disk "
                "that all of them have mounted there"
            )

    def _block(
        self, node_id: str, address: str, why: str, alive: Mapping[str, Mapping[str, Any]]
    ) -> None:
        """Occupy the resources of a node, so that no worker starts there."""
        self.unusable[node_id] = f"node {address}: {why}"
        useful = {
            other
            for other, node in alive.items()
            if other not in self.unusable and node["Resources"].get("CPU", 0) > 0
        }
        offered = alive.get(node_id, {}).get("Resources", {})
        if not useful and offered.get("CPU", 0) > 0:
            raise ClusterError(f"no node reaches the storage; {'; '.join(self.unusable.values())}")
        self.notice(f"node {address} is not used, as it does not reach the storage: {why}")
        strategy = NodeAffinitySchedulingStrategy(node_id, soft=False)
        for cpus, gpus in blocker_needs(offered.get("CPU", 0), offered.get("GPU", 0)):
            blocker = ray.remote(_Blocker).options(
                num_cpus=cpus, num_gpus=gpus, max_restarts=0, scheduling_strategy=strategy
            )
            self._blockers.append(blocker.remote())

    def release(self) -> None:
        """Kill the blockers."""
        for blocker in self._blockers:
            ray.kill(blocker)
        self._blockers.clear()


def blocker_needs(cpus: float, gpus: float) -> Iterator[tuple[float, float]]:
    """Yield (CPUs, GPUs) of each blocker that helps to occupy a node.

    Blockers are small: workers leave the node one by one, and Ray would give their resources to
    other workers while one large blocker waits for all of them.
    """
    each = max(1.0, math.ceil(cpus / MAX_BLOCKERS))
    while cpus > 0:
        yield min(each, cpus), 0.0
        cpus -= each
    for _ in range(int(gpus)):
        yield 0.0, 1.0


class _Blocker:
    """Idle actor that occupies resources of an unused node."""


@contextmanager
def nodes_checked(
    config: JobConfig, notice: Callable[[str], None] = lambda _: None
) -> Iterator[NodeChecks | None]:
    """Check the nodes of a cluster for the length of the block; yields None outside a cluster.

    The first nodes answer before the block begins. The block must poll the yielded checks: workers
    on a node that joins later wait for its verdict. Raises `ConfigError`, also from a poll, if a
    node must not work for this job, and `ClusterError` if none reaches the storage. A local output
    holds a hidden marker file meanwhile, which the nodes must see. Enter it before `run_settings`,
    which copies Ray Data's settings.
    """
    if not in_cluster():
        yield None
        return
    enter_phase("asking the nodes whether they may work")
    paths, table = local_paths(config), config.output
    with ExitStack() as ending:
        if is_local(table):
            marker = Path(canonical_uri(table), f".shared-{secrets.token_hex(4)}.tmp")
            marker.parent.mkdir(parents=True, exist_ok=True)
            marker.touch()
            ending.callback(marker.unlink, missing_ok=True)
            paths[str(marker)], table = "output", ""
        registry = ending.enter_context(running_registry(DataContext.get_current()))
        checks = NodeChecks(paths, table, notice, registry)
        ending.callback(checks.release)
        checks.wait()
        yield checks
