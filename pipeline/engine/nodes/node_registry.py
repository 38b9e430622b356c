"""Registry of a cluster's nodes: verdicts from the driver, storage retries from the workers.

A worker waits here for the driver's verdict on its node before it takes its first part: on a node
that cannot reach the storage it would fail each part. Workers report here how often they repeated
requests to storage.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from pipeline.engine.address import running_ray
from pipeline.storage.retries import on_storage_retry

_CONFIG = "restyle_node_registry"  # in Ray Data's context, which every worker of a run gets
# The driver checks a node within seconds; storage that does not answer takes minutes to time out.
VERDICT_WITHIN_S = 300.0
_ASK_EVERY_S = 0.5
# Delay before a worker leaves an unused node, so that the blockers start first.
_LEAVE_AFTER_S = 2.0


class NodeRegistry:
    """Actor on the driver's node that holds the verdicts and counts the retries."""

    def __init__(self) -> None:
        self._may_work: dict[str, bool] = {}  # by node id
        self._retries = 0

    def judge(self, node_id: str, may_work: bool) -> None:
        """Store the driver's verdict on a node."""
        self._may_work[node_id] = may_work

    def may_work(self, node_id: str) -> bool | None:
        """Return whether a node may work; None while it is being checked."""
        return self._may_work.get(node_id)

    def add_retry(self) -> None:
        """Count one repeated request to storage."""
        self._retries += 1

    def retries(self) -> int:
        """Return how many requests to storage the workers repeated."""
        return self._retries


@contextmanager
def running_registry(context: Any) -> Iterator[Any]:
    """Run a registry for the block, named in Ray Data's `context`; yield its handle."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    name = f"restyle-nodes-{secrets.token_hex(8)}"
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(NodeRegistry).options(name=name, num_cpus=0, scheduling_strategy=here)
    handle: Any = actor.remote()
    context.set_config(_CONFIG, name)
    try:
        yield handle
    finally:
        context.set_config(_CONFIG, "")  # later runs have their own
        ray.kill(handle)


@cache
def wait_for_verdict() -> None:
    """Return once this worker's node may work; end the process if the node must not.

    Ray then starts the actor, or repeats the task, on another node, as the driver occupies the
    resources of this one. Called before a worker takes its first part. Returns at once outside a
    cluster, and if no registry answers.
    """
    ray = running_ray()
    if ray is None:
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
    on_storage_retry(lambda: registry.add_retry.remote())


def _verdict(registry: Any, node_id: str) -> bool:
    """Return whether the node may work; True if the driver does not answer in time."""
    import ray

    deadline = time.monotonic() + VERDICT_WITHIN_S
    while time.monotonic() < deadline:
        may_work: bool | None = ray.get(registry.may_work.remote(node_id))
        if may_work is not None:
            return may_work
        time.sleep(_ASK_EVERY_S)
    return True
