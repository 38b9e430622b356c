"""What the driver and the workers of a cluster tell each other about its nodes.

A worker that starts on a node asks here whether the node may work, and waits until that is known:
one that does not reach the storage would fail each part that it takes. The other way it tells how
often it had to repeat requests to storage.
"""

from __future__ import annotations

import os
import secrets
import sys
import time
from functools import cache
from typing import Any

from pipeline.storage.retries import on_storage_retry

_CONFIG = "restyle_node_registry"  # in Ray Data's context, which every worker of a run gets
# The driver asks a node within seconds; one that gets no answer from its storage takes minutes.
VERDICT_WITHIN_S = 300.0
_ASK_EVERY_S = 0.5
# Before a worker leaves a node that is not used: its blockers are to be there first.
_LEAVE_AFTER_S = 2.0


class NodeRegistry:
    """The actor that holds it, on the driver's node."""

    def __init__(self) -> None:
        self._may_work: dict[str, bool] = {}  # by node id
        self._retries = 0

    def judge(self, node_id: str, may_work: bool) -> None:
        """Take the driver's verdict on a node."""
        self._may_work[node_id] = may_work

    def may_work(self, node_id: str) -> bool | None:
        """Return whether a node may work; None while the driver does not know."""
        return self._may_work.get(node_id)

    def add_retry(self) -> None:
        """Count one request to storage that is repeated."""
        self._retries += 1

    def retries(self) -> int:
        """Return how many requests to storage were repeated by workers."""
        return self._retries


def start_registry(context: Any) -> Any:
    """Start a registry for this driver and name it in Ray Data's `context`; return its handle."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    name = f"restyle-nodes-{secrets.token_hex(8)}"
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(NodeRegistry).options(name=name, num_cpus=0, scheduling_strategy=here)
    handle = actor.remote()
    context.set_config(_CONFIG, name)
    return handle


def stop_registry(context: Any, registry: Any) -> None:
    """End the registry, and let later runs of this process be without it."""
    import ray

    context.set_config(_CONFIG, "")
    ray.kill(registry)


@cache
def wait_for_verdict() -> None:
    """Return once this worker's node may work; end the process if the node must not.

    Ray starts an actor that ended so again, and repeats a task, where there is room: not here, as
    the driver holds what the node offers. Called before a worker takes its first part. Returns at
    once outside a cluster, and where no registry answers.
    """
    ray = sys.modules.get("ray")  # imported here it would come before its environment is set
    if ray is None or not ray.is_initialized():
        return
    from ray.data import DataContext

    name = DataContext.get_current().get_config(_CONFIG)
    if not name:
        return
    try:
        registry = ray.get_actor(name)
        may_work = _verdict(registry, ray.get_runtime_context().get_node_id())
    except (ValueError, ray.exceptions.RayError):  # the run is ending
        return
    if not may_work:
        time.sleep(_LEAVE_AFTER_S)
        os._exit(1)
    on_storage_retry(lambda: _report(registry))


def _report(registry: Any) -> None:
    registry.add_retry.remote()


def _verdict(registry: Any, node_id: str) -> bool:
    """Return whether the node may work; yes if the driver does not say in time."""
    import ray

    deadline = time.monotonic() + VERDICT_WITHIN_S
    while time.monotonic() < deadline:
        may_work: bool | None = ray.get(registry.may_work.remote(node_id))
        if may_work is not None:
            return may_work
        time.sleep(_ASK_EVERY_S)
    return True
