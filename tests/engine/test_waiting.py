from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from ray.data import DataContext, ExecutionResources

from pipeline.engine.waiting import NO_ACTOR_S, EndVainWait, Vigil, end_vain_waits
from pipeline.errors import ClusterError


@dataclass(eq=False)
class Pool:
    """What is asked of a Ray Data operator, and of its pool of actors."""

    running: int = 0
    finished: bool = False
    name: str = "Map(Invert)"
    gpu: int = 1

    def get_autoscaling_actor_pools(self) -> list[Any]:
        needs = ExecutionResources(gpu=self.gpu, cpu=1 - self.gpu)
        return [SimpleNamespace(per_actor_resource_usage=lambda: needs)]

    def has_execution_finished(self) -> bool:
        return self.finished

    def get_actor_info(self) -> Any:
        return SimpleNamespace(running=self.running)


@dataclass(eq=False)
class Reader(Pool):
    """Tasks: no pool."""

    def get_autoscaling_actor_pools(self) -> list[Any]:
        return []


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def vigil(clock: Clock) -> Vigil:
    return Vigil(clock)


@pytest.mark.parametrize("operator", [Pool(running=1), Pool(finished=True), Reader()])
def test_who_works_may_take_any_time(vigil: Vigil, clock: Clock, operator: Pool) -> None:
    for hour in range(5):
        clock.now = 3600.0 * hour
        vigil.look([operator])


@pytest.mark.parametrize(("gpu", "wanted"), [(1, "a GPU"), (0, "1 CPUs")])
def test_a_pool_that_gets_no_actor_ends_the_run(
    vigil: Vigil, clock: Clock, gpu: int, wanted: str
) -> None:
    alone = Pool(gpu=gpu)
    vigil.look([Pool(running=1), alone])
    clock.now = NO_ACTOR_S - 1
    vigil.look([alone])
    clock.now = NO_ACTOR_S
    with pytest.raises(ClusterError, match=f"no node with {wanted} .* 30 minutes .* run again"):
        vigil.look([alone])


def test_the_wait_begins_anew_when_an_actor_is_lost(vigil: Vigil, clock: Clock) -> None:
    pool = Pool(running=1)
    clock.now = 2 * NO_ACTOR_S
    vigil.look([pool])
    pool.running = 0
    clock.now += NO_ACTOR_S - 1
    vigil.look([pool])
    clock.now += 1
    with pytest.raises(ClusterError):
        vigil.look([pool])


# Ray Data sets its own deprecated settings, and warns itself of it.
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
def test_it_is_put_into_executions_once() -> None:
    context = DataContext.get_current()
    end_vain_waits()
    end_vain_waits()
    assert context.execution_no_progress_timeout_s == -1
    assert context.custom_execution_callback_classes.count(EndVainWait) == 1
