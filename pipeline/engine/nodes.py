"""On a cluster, whether each node may work for a job: asked before it does, or as it comes.

A node with other code or packages would write other numbers, one that lacks a local path would
write to a disk of its own: such a node ends the run, named. One that does not reach the storage is
not used: the run goes on with the others.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
from ray.data import DataContext
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.config import JobConfig
from pipeline.engine.address import in_cluster
from pipeline.engine.node_registry import start_registry, stop_registry
from pipeline.engine.node_report import NodeReport, code_digest, versions
from pipeline.engine.pending import ClusterState
from pipeline.engine.progress import Progress, doing
from pipeline.errors import ClusterError, ConfigError
from pipeline.storage import canonical_uri, is_local, one_line
from pipeline.table import SPEC_NAME

POLL_EVERY_S = 5.0
# How long the nodes that are there at first may take to answer before the stages start.
FIRST_ANSWERS_S = 120.0
# A network disk may show a new file that much later.
PATIENCE_S = 10
MOST_BLOCKERS = 32  # of a node, for its CPUs; each is a process


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


def remote_stores(config: JobConfig) -> list[tuple[str, str]]:
    """The folders in object storage that every node must reach, each with a file that is there.

    S3 answers for a name that is not there as for one without rights, so the input is not asked
    for any: its names are not known here.
    """
    return [] if is_local(config.output) else [(config.output, SPEC_NAME)]


def _ask(node: str, paths: Sequence[str], stores: Sequence[tuple[str, str]]) -> Any:
    """Return the reference of a task on the node: its `NodeReport`, or why it gives none."""

    # An inner function travels as it is: the package may not be there.
    def report(
        paths: Sequence[str], stores: Sequence[tuple[str, str]], patience_s: int
    ) -> NodeReport | str:
        try:
            from pipeline.engine.node_report import node_report
        except ImportError as error:
            return f"{type(error).__name__}: {error}"
        return node_report(paths, stores, patience_s)

    strategy = NodeAffinitySchedulingStrategy(node, soft=False)
    task = ray.remote(report).options(num_cpus=0, max_retries=0, scheduling_strategy=strategy)
    return task.remote(paths, stores, PATIENCE_S)


class NodeChecks:
    """Asks each node of a cluster, as it comes, and keeps work off those that reach no storage."""

    def __init__(
        self,
        paths: Mapping[str, str],  # local path -> the setting that names it
        stores: Sequence[tuple[str, str]] = (),
        notice: Callable[[str], None] = lambda _: None,  # takes a line for the user
        registry: Any = None,  # of `NodeRegistry`, where workers wait for a verdict
    ) -> None:
        self.paths, self.stores, self.notice = dict(paths), list(stores), notice
        self.registry = registry
        self._seen: set[str] = set()
        self._retries_asked: Any = None
        self._retries = 0
        self._alive: dict[str, str] = {}  # id -> address of the nodes that were seen
        self._asked: dict[Any, str] = {}  # task -> its node
        self._unusable: dict[str, str] = {}  # node -> why
        self._blockers: list[Any] = []
        self._polled = -math.inf

    def poll(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Ask new nodes and hear what the others said; called many times a second.

        Raises `ConfigError` if a node must not work for this job, `ClusterError` if none can.
        """
        if clock() - self._polled < POLL_EVERY_S:
            return
        self._polled = clock()
        alive = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
        for lost in self._alive.keys() - alive.keys():
            self.notice(f"node {self._alive.pop(lost)} is lost: its parts are repeated")
            self._unusable.pop(lost, None)
        for node_id in alive.keys() - self._alive.keys():
            self._seen.add(node_id)
            self._alive[node_id] = str(alive[node_id]["NodeManagerAddress"])
            self._asked[_ask(node_id, list(self.paths), self.stores)] = node_id
        if self._asked:
            waiting = list(self._asked)
            answered, _ = ray.wait(waiting, num_returns=len(waiting), timeout=0)
            for task in answered:
                self._hear(task, self._asked.pop(task), alive)
        self._count_retries()
        if Progress.current:
            Progress.current.cluster = self._state(alive)

    @property
    def unused(self) -> frozenset[str]:
        """Ids of the nodes that are not used."""
        return frozenset(self._unusable)

    def _count_retries(self) -> None:
        """Take in how often workers repeated requests to storage, without waiting for it."""
        if self.registry is None:
            return
        if self._retries_asked is not None:
            if not ray.wait([self._retries_asked], timeout=0)[0]:
                return
            with suppress(ray.exceptions.RayError):  # what counts is said in numbers, or not
                self._retries = ray.get(self._retries_asked)
        self._retries_asked = self.registry.retries.remote()

    def _state(self, alive: Mapping[str, Mapping[str, Any]]) -> ClusterState:
        used = [node["Resources"] for key, node in alive.items() if key not in self._unusable]
        return ClusterState(
            alive=len(alive),
            seen=len(self._seen),
            unused=len(alive) - len(used),
            cpus=sum(node.get("CPU", 0.0) for node in used),
            gpus=sum(node.get("GPU", 0.0) for node in used),
            retries=self._retries,
        )

    def wait(self, seconds: float = FIRST_ANSWERS_S) -> None:
        """Poll until every node that is there has answered, `seconds` at most."""
        deadline = time.monotonic() + seconds
        self.poll(lambda: math.inf)
        while self._asked and time.monotonic() < deadline:
            ray.wait(list(self._asked), num_returns=1, timeout=deadline - time.monotonic())
            self._polled = -math.inf
            self.poll()

    def _hear(self, task: Any, node_id: str, alive: Mapping[str, Mapping[str, Any]]) -> None:
        address = self._alive.get(node_id, node_id)
        try:
            report = ray.get(task)
        except ray.exceptions.RayError as error:
            if node_id in alive and isinstance(error, ray.exceptions.RayTaskError):
                raise ConfigError(f"node {address} cannot work: {one_line(error)}") from error
            self._alive.pop(node_id, None)  # it is gone, or is asked again
            return
        if isinstance(report, str):
            raise ConfigError(
                f"node {address} lacks this package or one that it needs ({report}): install it "
                "there, or send the code along by `ray job submit --working-dir .`"
            )
        self._compare(address, report)
        self._judge(node_id, not report.storage_error)
        if report.storage_error:
            self._block(node_id, address, report.storage_error, alive)

    def _judge(self, node_id: str, may_work: bool) -> None:
        """Tell the workers of a node, which wait for it, whether they may begin."""
        if self.registry is not None:
            self.registry.judge.remote(node_id, may_work)

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
        """Hold what the node has to offer, so that no worker is started there."""
        self._unusable[node_id] = f"node {address}: {why}"
        useful = {
            other
            for other, node in alive.items()
            if other not in self._unusable and node["Resources"].get("CPU", 0) > 0
        }
        offered = alive.get(node_id, {}).get("Resources", {})
        if not useful and offered.get("CPU", 0) > 0:
            raise ClusterError(f"no node reaches the storage; {'; '.join(self._unusable.values())}")
        self.notice(f"node {address} is not used, as it does not reach the storage: {why}")
        strategy = NodeAffinitySchedulingStrategy(node_id, soft=False)
        for cpus, gpus in blocker_needs(offered.get("CPU", 0), offered.get("GPU", 0)):
            blocker = ray.remote(_Blocker).options(
                num_cpus=cpus, num_gpus=gpus, max_restarts=0, scheduling_strategy=strategy
            )
            self._blockers.append(blocker.remote())

    def release(self) -> None:
        """Give up what is held."""
        for blocker in self._blockers:
            ray.kill(blocker)
        self._blockers.clear()


def blocker_needs(cpus: float, gpus: float) -> Iterator[tuple[float, float]]:
    """Yield the (CPUs, GPUs) of the blockers that hold a node.

    Small ones: workers that have part of the node leave it one by one, and Ray would give what
    they leave to other workers while one large blocker waits for all of it.
    """
    each = max(1.0, math.ceil(cpus / MOST_BLOCKERS))
    while cpus > 0:
        yield min(each, cpus), 0.0
        cpus -= each
    for _ in range(int(gpus)):
        yield 0.0, 1.0


class _Blocker:
    """An actor that does nothing on a node that is not used."""


@contextmanager
def nodes_checked(
    config: JobConfig, notice: Callable[[str], None] = lambda _: None
) -> Iterator[NodeChecks | None]:
    """Ask the nodes of a cluster within the block whether they may work for the job.

    Those that are there at first answer before the block begins. Workers on a node that comes later
    wait for the answer of theirs, for which the block polls the checks that it gets; it gets None
    outside a cluster. Raises `ConfigError` where one must not work, also from the poll, and
    `ClusterError` where none reaches the storage. A hidden file in a local output is what nodes
    must see; it is gone after the block. Enter it before `run_settings`, which takes a copy of Ray
    Data's settings.
    """
    if not in_cluster():
        yield None
        return
    doing("asking the nodes whether they may work")
    paths, marker = local_paths(config), None
    if is_local(config.output):
        marker = Path(canonical_uri(config.output), f".shared-{secrets.token_hex(4)}.tmp")
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()
        paths[str(marker)] = "output"
    context = DataContext.get_current()
    registry = start_registry(context)
    checks = NodeChecks(paths, remote_stores(config), notice, registry)
    try:
        checks.wait()
        yield checks
    finally:
        checks.release()
        stop_registry(context, registry)
        if marker:
            marker.unlink(missing_ok=True)
