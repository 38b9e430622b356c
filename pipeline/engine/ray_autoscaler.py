"""Autoscaling by backlog: request resources for one actor per part that the actor pools hold.

The autoscaler of Ray Data 2.60 (`RateBasedClusterAutoscaler`) requests twice the current throughput
for the whole job and repeats its last request while the cluster idles: GPU nodes stay up while the
last parts are aligned, although no inverter has work. It sends one request for everything: if that
names one GPU more than the cluster may have, Ray drops all of it, the CPUs too.

Here each missing actor is represented by a pending task that does nothing and reserves the same
resources. Ray's autoscaler, in every version, handles each task alone: it starts nodes for those
that it can, and leaves the others pending. Unused nodes shut down, as nothing reserves them.
"""

from __future__ import annotations

import math
import time
from collections import deque
from typing import Any

import ray
from ray.data._internal.cluster_autoscaler import ClusterAutoscaler

from pipeline.engine.address import in_cluster
from pipeline.machine import whole_cpus

ASK_EVERY_S = 5.0
# A node takes minutes to start: a shorter demand is not requested.
DEBOUNCE_S = 20.0
# A machine with fewer cores starts the first part's workers before it starts others.
FEW_CORES = 8
GROW_AFTER_S = 4.0  # about as long as the first part takes from there
# Per pool: pending tasks cost Ray work if no node ever starts.
MAX_PENDING_REQUESTS = 256


class Debounced:
    """Debounced count: changes after the observed one was above, or below, it for `DEBOUNCE_S`."""

    def __init__(self) -> None:
        self.observed: deque[tuple[float, int]] = deque()
        self.value = 0

    def observe(self, count: int, now: float) -> int:
        """Add the count at time `now` (s); return the debounced count, initially the first one."""
        self.observed.append((now, count))
        while self.observed[0][0] < now - DEBOUNCE_S:
            self.observed.popleft()
        counts = [count for _, count in self.observed]
        self.value = min(max(self.value, min(counts)), max(counts))
        return self.value


def target_actors(pool: Any) -> int:
    """Return one actor per part that a Ray Data actor pool has in work or queued at an actor.

    Ray Data gives each actor two parts, so a full pool doubles.
    """
    parts = math.ceil(pool.num_tasks_in_flight() / pool.max_actor_concurrency())
    return int(min(max(parts, pool.min_size()), pool.max_size()))


def missing_workers(operator: Any, queued: int) -> int:
    """Return how many more actors, or tasks, of a Ray Data `operator` there is work for.

    Tasks start wherever resources are free: one is missing only if none runs and blocks are
    `queued`.
    """
    if operator.has_completed():
        return 0
    pools = operator.get_autoscaling_actor_pools()
    if not pools:
        return int(queued > 0 and operator.num_active_tasks() == 0)
    return sum(max(0, target_actors(pool) - pool.current_size()) for pool in pools)


class PendingRequests:
    """Pending tasks that request resources from Ray's autoscaler."""

    def __init__(self, needs: Any) -> None:
        # A lambda is pickled by value; for a function a worker would import this module.
        nothing = ray.remote(lambda: None)
        self.task = nothing.options(num_cpus=needs.cpu, num_gpus=needs.gpu, max_retries=0)
        self.tasks: list[Any] = []

    def keep(self, count: int) -> None:
        """Keep `count` tasks pending: replace those that have run, cancel surplus ones."""
        if self.tasks:
            _, self.tasks = ray.wait(
                self.tasks, num_returns=len(self.tasks), timeout=0, fetch_local=False
            )
        for task in self.tasks[count:]:
            ray.cancel(task)
        self.tasks = self.tasks[:count]
        self.tasks += [self.task.remote() for _ in range(count - len(self.tasks))]


class BacklogAutoscaler(ClusterAutoscaler):
    """Replaces `ray_own`, the autoscaler that a Ray Data execution starts with."""

    def __init__(self, ray_own: Any, topology: Any, *, nodes_may_come: bool = True) -> None:
        self.ray_own, self.topology, self.nodes_may_come = ray_own, topology, nodes_may_come
        needs = {operator: operator.min_scheduling_resources() for operator in topology}
        self.pending_requests = {
            operator: PendingRequests(need)
            for operator, need in needs.items()
            if need.cpu or need.gpu
        }
        self.debounced = {operator: Debounced() for operator in self.pending_requests}
        self.last_request = -math.inf

    def try_trigger_scaling(self) -> None:
        """Request the missing workers; called many times per second."""
        now = time.monotonic()
        if now - self.last_request < ASK_EVERY_S:
            return
        self.last_request = now
        # An empty request keeps this execution's share of the cluster, which expires otherwise.
        self.ray_own._send_resource_request([])
        for operator, pending_requests in self.pending_requests.items():
            queued = self.topology[operator].total_enqueued_input_blocks()
            count = min(missing_workers(operator, queued), MAX_PENDING_REQUESTS)
            pending_requests.keep(self.debounced[operator].observe(count, now))

    def on_executor_shutdown(self) -> None:
        """Withdraw all requests."""
        for pending_requests in self.pending_requests.values():
            pending_requests.keep(0)
        self.ray_own.on_executor_shutdown()

    def get_total_resources(self) -> Any:
        """Return the resources of the cluster for this execution, as Ray counts them."""
        return self.ray_own.get_total_resources()


class LaterGrowth:
    """Replaces `ray_own`, the autoscaler of actor pools, on a machine with few cores.

    Pools stay at one actor until each has one that runs, and `GROW_AFTER_S` longer: a second
    aligner and inverter take six seconds of a core to start, which the first part would wait for.
    """

    def __init__(self, ray_own: Any, topology: Any) -> None:
        self.ray_own = ray_own
        self.pools = [each for each in topology if each.get_autoscaling_actor_pools()]
        self.running_since = math.inf

    def try_trigger_scaling(self) -> None:
        """Let pools grow, or replace an actor that died at its start; called at each step."""
        states = [pool.get_actor_info() for pool in self.pools]
        if all(state.running for state in states):
            self.running_since = min(self.running_since, time.monotonic())
        died = any(not (state.running or state.pending or state.restarting) for state in states)
        if died or time.monotonic() - self.running_since >= GROW_AFTER_S:
            self.ray_own.try_trigger_scaling()


def install_autoscaler(executor: Any, *, nodes_may_come: bool) -> None:
    """Install an autoscaler of this module in an execution that is about to start.

    On a cluster it follows the backlog; `nodes_may_come` says whether Ray's own autoscaler runs and
    can start nodes. On a machine with few cores pools grow later, if CPUs invert.
    """
    topology = executor._topology
    if in_cluster():
        executor._cluster_autoscaler = BacklogAutoscaler(
            executor._cluster_autoscaler, topology, nodes_may_come=nodes_may_come
        )
        return
    # With several GPUs an earlier first part is worth less than the seconds of those that wait.
    on_gpu = any(operator.min_scheduling_resources().gpu for operator in topology)
    if whole_cpus() < FEW_CORES and not on_gpu:
        executor._actor_autoscaler = LaterGrowth(executor._actor_autoscaler, topology)


def requested_workers(executor: Any) -> dict[Any, int]:
    """Return, for each operator of an execution, how many workers are requested.

    Empty if no autoscaler can start nodes.
    """
    scaler = executor._cluster_autoscaler
    if not isinstance(scaler, BacklogAutoscaler) or not scaler.nodes_may_come:
        return {}
    return {operator: len(held.tasks) for operator, held in scaler.pending_requests.items()}
