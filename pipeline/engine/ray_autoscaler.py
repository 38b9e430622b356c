"""How many nodes a running job asks for: room for each part that its pools of actors hold.

Ray Data 2.60 asks by itself (`RateBasedClusterAutoscaler`), but for twice the present throughput as
long as the job runs, and repeats the last request when the cluster idles: nodes with GPUs stay up
while the last parts are aligned, though no inverter has work. And its request is one for all: if it
names one GPU more than the cluster may ever have, Ray's autoscaler drops the whole, CPUs too.

Here each actor that is missing is asked for by a task that does nothing and needs what the actor
needs. Ray's autoscaler, of any version, sees each one by itself: it starts nodes for those that it
may, and leaves the others waiting. A node that nobody uses goes down, as nothing holds it.
"""

from __future__ import annotations

import math
import time
from collections import deque
from typing import Any

import ray
from ray.data._internal.cluster_autoscaler import ClusterAutoscaler

ASK_EVERY_S = 5.0
# A node takes minutes to come: what is wanted for less than this is not asked for.
DEBOUNCE_S = 20.0
# Of one pool at a time: where nothing comes, they wait in vain.
MAX_PLACEHOLDERS = 256


class Debounced:
    """A count that follows the observed one after that stayed above, or below, for `seconds`."""

    def __init__(self, seconds: float | None = None) -> None:
        self.seconds = DEBOUNCE_S if seconds is None else seconds
        self.seen: deque[tuple[float, int]] = deque()
        self.value = 0

    def observe(self, count: int, now: float) -> int:
        """Take in the count of `now` (s); returns the debounced one, at first that count."""
        self.seen.append((now, count))
        while self.seen[0][0] < now - self.seconds:
            self.seen.popleft()
        counts = [count for _, count in self.seen]
        self.value = min(max(self.value, min(counts)), max(counts))
        return self.value


def actors_wanted(pool: Any) -> int:
    """One actor for each part that a Ray Data actor pool has, worked on or next in line.

    Ray Data gives an actor two parts at a time, so a pool that is full wants to double.
    """
    parts = math.ceil(pool.num_tasks_in_flight() / pool.max_actor_concurrency())
    return int(min(max(parts, pool.min_size()), pool.max_size()))


def missing(operator: Any, queued: int) -> int:
    """How many more actors, or tasks, of a Ray Data `operator` there is work for.

    Tasks start wherever there is room, so one is missing only if none runs and blocks are `queued`.
    """
    if operator.has_completed():
        return 0
    pools = operator.get_autoscaling_actor_pools()
    if not pools:
        return int(queued > 0 and operator.num_active_tasks() == 0)
    return sum(max(0, actors_wanted(pool) - pool.current_size()) for pool in pools)


class Placeholders:
    """Tasks that wait for room, to be seen by Ray's autoscaler."""

    def __init__(self, needs: Any) -> None:
        # A lambda, as a worker would have to import this module for a function of it.
        nothing = ray.remote(lambda: None)
        self.task = nothing.options(num_cpus=needs.cpu, num_gpus=needs.gpu, max_retries=0)
        self.waiting: list[Any] = []

    def hold(self, count: int) -> None:
        """Let `count` tasks wait: those that found room are replaced, surplus ones cancelled."""
        if self.waiting:
            _, self.waiting = ray.wait(
                self.waiting, num_returns=len(self.waiting), timeout=0, fetch_local=False
            )
        for task in self.waiting[count:]:
            ray.cancel(task)
        self.waiting = self.waiting[:count]
        self.waiting += [self.task.remote() for _ in range(count - len(self.waiting))]


class BacklogAutoscaler(ClusterAutoscaler):
    """Takes the place of `ray_own`, the autoscaler that a Ray Data execution begins with."""

    def __init__(self, ray_own: Any, topology: Any, *, nodes_may_come: bool = True) -> None:
        self.ray_own, self.topology, self.nodes_may_come = ray_own, topology, nodes_may_come
        needs = {operator: operator.min_scheduling_resources() for operator in topology}
        self.placeholders = {
            operator: Placeholders(need) for operator, need in needs.items() if need.cpu or need.gpu
        }
        self.debounced = {operator: Debounced() for operator in self.placeholders}
        self.asked = -math.inf

    def try_trigger_scaling(self) -> None:
        """Ask for what is missing; called many times a second."""
        now = time.monotonic()
        if now - self.asked < ASK_EVERY_S:
            return
        self.asked = now
        # An empty request keeps this execution's share of the cluster, which is dropped otherwise.
        self.ray_own._send_resource_request([])
        for operator, placeholders in self.placeholders.items():
            queued = self.topology[operator].total_enqueued_input_blocks()
            count = min(missing(operator, queued), MAX_PLACEHOLDERS)
            placeholders.hold(self.debounced[operator].observe(count, now))

    def on_executor_shutdown(self) -> None:
        """Withdraw whatever is asked for."""
        for placeholders in self.placeholders.values():
            placeholders.hold(0)
        self.ray_own.on_executor_shutdown()

    def get_total_resources(self) -> Any:
        """What the cluster has for this execution, as Ray counts it."""
        return self.ray_own.get_total_resources()


def scale_by_backlog(executor: Any, *, nodes_may_come: bool) -> None:
    """Size the cluster by the backlog in an execution that is about to start.

    `nodes_may_come` says whether Ray's autoscaler is there to hear of it.
    """
    executor._cluster_autoscaler = BacklogAutoscaler(
        executor._cluster_autoscaler, executor._topology, nodes_may_come=nodes_may_come
    )


def requested_workers(executor: Any) -> dict[Any, int]:
    """Return for each operator of an execution how many workers an autoscaler is asked for.

    Empty where no autoscaler may start a node: no one hears what is asked for.
    """
    scaler = executor._cluster_autoscaler
    if not isinstance(scaler, BacklogAutoscaler) or not scaler.nodes_may_come:
        return {}
    return {operator: len(held.waiting) for operator, held in scaler.placeholders.items()}
