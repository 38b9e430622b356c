from __future__ import annotations

import pytest
import ray
from ray.data import ExecutionResources

from pipeline.engine.cluster import Resources
from pipeline.engine.ray_autoscaler import PendingRequests
from tests.engine.on_ray import MARKS

pytestmark = MARKS


def test_requests_stay_pending_until_withdrawn(one_node: Resources) -> None:
    pending_requests = PendingRequests(ExecutionResources(cpu=one_node.cpus + 1, gpu=0))
    pending_requests.keep(3)
    first, *others = pending_requests.tasks
    assert ray.wait([first, *others], timeout=1)[0] == []
    pending_requests.keep(1)
    assert pending_requests.tasks == [first]
    for task in others:
        with pytest.raises(ray.exceptions.TaskCancelledError):
            ray.get(task, timeout=60)
    pending_requests.keep(0)
    fitting = PendingRequests(ExecutionResources(cpu=1, gpu=0))
    fitting.keep(1)
    (ran,) = fitting.tasks
    assert ray.get(ran, timeout=120) is None
    fitting.keep(1)
    assert fitting.tasks != [ran], "a task that has run is replaced"
