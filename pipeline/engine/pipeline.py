"""Build and run the stages as one Ray Data pipeline: shards in, one small message per part out."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ray.data import ActorPoolStrategy, TaskPoolStrategy

from pipeline.engine.capacity import Pools
from pipeline.engine.messages import Message, Row, from_row
from pipeline.engine.stages import Stage
from pipeline.engine.stages.base import Worker

_POOL_SETTINGS = inspect.signature(ActorPoolStrategy).parameters


def build_pipeline(source: Any, stages: Sequence[Stage], pools: Pools) -> Any:
    """Return the lazy Ray dataset of `source` (`ShardTask` rows) through `stages`."""
    dataset = source
    for stage in stages:
        size, needs = pools.workers[stage.name], pools.needs(stage)
        if stage.resources.is_pool:
            pool, more = _actor_pool(size, pools.parts_at_once(stage))
            # Ray builds this class in its actors, and names the operator after it.
            worker: Any = type(type(stage).__name__, (Worker,), {})
            dataset = dataset.map(
                worker, fn_constructor_args=(stage,), compute=pool, **needs, **more
            )
        else:
            readers = TaskPoolStrategy(size=size)
            dataset = dataset.flat_map(_task(stage), compute=readers, **needs)
    return dataset


def stage_of(operator: str, stages: Sequence[Stage]) -> Stage | None:
    """Return the stage that the Ray Data operator of this name runs; None for the source."""
    named = re.fullmatch(r"(?:Flat)?Map\((\w+)\)", operator)
    return next((each for each in stages if named and type(each).__name__ == named[1]), None)


def _task(stage: Stage) -> Callable[[Row], Iterator[Row]]:
    """Return the function that Ray calls in its tasks; Ray names the operator after it."""

    def work(row: Row) -> Iterator[Row]:
        yield from Worker(stage).rows(row)

    work.__name__ = type(stage).__name__
    return work


def _actor_pool(size: int, parts_at_once: int) -> tuple[ActorPoolStrategy, dict[str, Any]]:
    """Return a pool of up to `size` actors, each with `parts_at_once` concurrent calls.

    Tasks would be slower: Ray ends a process that is idle for a second, and starting one takes
    seconds of a core. Ray 2.57 and 2.58 take the number of calls as an option of the actor.
    """
    if parts_at_once == 1:
        return ActorPoolStrategy(min_size=1, max_size=size), {}
    calls, actor = {"max_concurrent_calls_per_actor": parts_at_once}, {}
    if not calls.keys() <= _POOL_SETTINGS.keys():
        calls, actor = {}, {"max_concurrency": parts_at_once}
    pool = ActorPoolStrategy(min_size=1, max_size=size, enable_true_multi_threading=True, **calls)
    return pool, actor


def run_pipeline(dataset: Any) -> Iterator[Message]:
    """Run the pipeline; yield the messages of the last stage as they arrive."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for row in dataset.iter_rows():
            yield from_row(row)
