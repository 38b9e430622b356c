"""The stages as one Ray Data pipeline: shards in, a small row a part out."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext, TaskPoolStrategy

from pipeline.config import JobConfig
from pipeline.engine.align import AlignStage
from pipeline.engine.cluster import Resources
from pipeline.engine.invert import InvertStage
from pipeline.engine.plan import Plan
from pipeline.engine.read import read_parts
from pipeline.engine.rows import Row
from pipeline.engine.write import WriteStage

# All different, so that Ray fuses no stage with the next: a fused shard is retried whole.
READ_CPUS = 0.5
ALIGN_CPUS = 1.0
INVERT_CPUS = 0.9
WRITE_CPUS = 0.25
READERS = 4
# Ray holds back by bytes in its store; it overshoots a limit by about 30 %.
STORE_SHARE = 0.5


@dataclass(frozen=True)
class Pools:
    """How many actors each pool may grow to, and whether inverters ask for a GPU."""

    aligners: int
    inverters: int
    on_gpu: bool

    @classmethod
    def of(cls, config: JobConfig, resources: Resources, local: bool) -> Pools:
        """The config's sizes, else all the cores and GPUs that there are."""
        on_gpu = config.device == "cuda" or (config.device == "auto" and resources.gpus > 0)
        cores = max(1, int((resources.cpus - 1) / 2 if local else resources.cpus - 2))
        inverters = max(1, int(resources.gpus)) if on_gpu else cores
        return cls(config.align_workers or cores, config.inverters or inverters, on_gpu)


@dataclass(frozen=True)
class Stages:
    """What the pipeline is made of; the benchmark puts stages that do nothing in their place."""

    align: type[Any] = AlignStage
    invert: type[Any] = InvertStage


def configure_context() -> None:
    """One row a block, no prints, and a bound on what waits between the stages."""
    context = DataContext.get_current()
    context.target_max_block_size = 1
    context.print_on_execution_start = False
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    store = ray.cluster_resources().get("object_store_memory", 2e9)
    limits = context.execution_options.resource_limits
    context.execution_options.resource_limits = limits.copy(object_store_memory=STORE_SHARE * store)


def build_dataset(plan: Plan, pools: Pools, stages: Stages) -> Any:
    """The lazy Ray dataset of `plan`: read, align, invert, write."""
    recipe = plan.recipe
    items = [work.to_row() for work in plan.works]
    on: dict[str, Any] = (
        {"num_gpus": 1, "num_cpus": 0} if pools.on_gpu else {"num_cpus": INVERT_CPUS}
    )
    return (
        ray.data.from_items(items, override_num_blocks=len(items))
        .flat_map(read_parts, num_cpus=READ_CPUS, compute=TaskPoolStrategy(size=READERS))
        .map(
            # Ray builds the class in its actors; its annotation wants a plain function.
            cast("Callable[[Row], Row]", stages.align),
            fn_constructor_args=(recipe.alignment,),
            compute=ActorPoolStrategy(min_size=1, max_size=pools.aligners),
            num_cpus=ALIGN_CPUS,
        )
        .map(
            cast("Callable[[Row], Row]", stages.invert),
            fn_constructor_args=(recipe.inversion, recipe.columns),
            compute=ActorPoolStrategy(min_size=1, max_size=pools.inverters),
            **on,
        )
        .map(WriteStage(plan.writer), num_cpus=WRITE_CPUS)
    )


def summaries(dataset: Any) -> Iterator[Row]:
    """The rows that come out, one a part and one a shard, as they are finished."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield from dataset.iter_rows()
