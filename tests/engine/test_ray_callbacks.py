from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from ray.data import DataContext, ExecutionResources

from pipeline.alignment import AlignmentSettings
from pipeline.engine.prometheus import PrometheusMetrics
from pipeline.engine.ray_callbacks import NO_ACTOR_S, RunCallbacks, StallDetector, run_settings
from pipeline.engine.stages import Align
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
        return SimpleNamespace(running=self.running, pending=0, restarting=0)

    def num_active_tasks(self) -> int:
        return 0

    def min_scheduling_resources(self) -> ExecutionResources:
        return ExecutionResources(cpu=1)


class Recorder:
    """A gauge that keeps what it is set to."""

    def __init__(self) -> None:
        self.values: list[tuple[float, dict[str, str]]] = []

    def set(self, value: float, tags: dict[str, str]) -> None:
        self.values.append((value, tags))


def of(*operators: Pool) -> Any:
    """An executor of these operators."""
    return SimpleNamespace(_topology=operators)


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
def detector(clock: Clock) -> StallDetector:
    return StallDetector(clock)


@pytest.mark.parametrize("operator", [Pool(running=1), Pool(finished=True), Reader()])
def test_who_works_may_take_any_time(detector: StallDetector, clock: Clock, operator: Pool) -> None:
    for hour in range(5):
        clock.now = 3600.0 * hour
        detector.check(of(operator))


@pytest.mark.parametrize(("gpu", "wanted"), [(1, "a GPU"), (0, "1 CPUs")])
def test_a_pool_that_gets_no_actor_ends_the_run(
    detector: StallDetector, clock: Clock, gpu: int, wanted: str
) -> None:
    alone = Pool(gpu=gpu)
    detector.check(of(Pool(running=1), alone))
    clock.now = NO_ACTOR_S - 1
    detector.check(of(alone))
    clock.now = NO_ACTOR_S
    with pytest.raises(ClusterError, match=f"no node with {wanted} .* 30 minutes .* run again"):
        detector.check(of(alone))


def test_the_wait_begins_anew_when_an_actor_is_lost(detector: StallDetector, clock: Clock) -> None:
    pool = Pool(running=1)
    clock.now = 2 * NO_ACTOR_S
    detector.check(of(pool))
    pool.running = 0
    clock.now += NO_ACTOR_S - 1
    detector.check(of(pool))
    clock.now += 1
    with pytest.raises(ClusterError):
        detector.check(of(pool))


# Ray Data sets its own deprecated settings, and warns itself of it.
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
def test_two_runs_of_a_process_do_not_call_each_other() -> None:
    before, called = DataContext.get_current(), []
    executions = []
    for number in (1, 2):
        with run_settings(steps=[lambda _, number=number: called.append(number)]):
            context = DataContext.get_current()
            assert context.custom_execution_callback_classes.count(RunCallbacks) == 1
            assert context.target_max_block_size == 1
            executions.append(SimpleNamespace(_topology={}, _data_context=context.copy()))
            for execution in executions:
                RunCallbacks().on_execution_step(execution)
    assert called == [1, 2], "the first run's execution is over with the first run"
    assert DataContext.get_current() is before
    assert RunCallbacks not in before.custom_execution_callback_classes
    assert before.target_max_block_size != 1


def test_the_gauges_of_a_run_are_set_by_its_own_stages() -> None:
    align = Align(AlignmentSettings())
    metrics, gauge = PrometheusMetrics([align]), Recorder()
    metrics._workers, metrics._queued, metrics._looked = gauge, Recorder(), 0.0
    state = SimpleNamespace(total_enqueued_input_blocks=lambda: 0)
    operators = [Pool(name="Map(Other)", running=5), Pool(name="Map(Align)", running=2)]
    executor = SimpleNamespace(_topology=dict.fromkeys(operators, state), _cluster_autoscaler=None)
    metrics.observe(executor)
    assert gauge.values == [(2, {"stage": "align"})]
