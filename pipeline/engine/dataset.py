"""The stages as one Ray Data pipeline: shards in, a small row a part out."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from ray.data import ActorPoolStrategy, DataContext, TaskPoolStrategy
from ray.data._internal.execution.execution_callback import ExecutionCallback

from pipeline.config import JobConfig
from pipeline.engine.address import in_cluster
from pipeline.engine.align import AlignStage
from pipeline.engine.attempts import set_notes_folder
from pipeline.engine.autoscaling import ask_for_backlog
from pipeline.engine.capacity import Inverter, StageCpus, fit
from pipeline.engine.cluster import Resources
from pipeline.engine.invert import InvertStage
from pipeline.engine.plan import Plan
from pipeline.engine.read import read_parts
from pipeline.engine.rows import Row
from pipeline.engine.source import shard_source
from pipeline.engine.waiting import end_vain_waits
from pipeline.engine.write import WriteStage
from pipeline.machine import memory_limit

READERS, WRITERS = 4, 2
# One reads about 100 MB/s from a bucket, what a dozen aligners take.
CLUSTER_READERS = 16
# Of one writer: packing a part takes 0.05 s of a core, a put to a bucket several times that.
PUTS_AT_ONCE = 4
# A bound of no meaning: on a cluster Ray Data starts an actor only where there is room for it, and
# nodes come as the backlog asks for them. #59144: a pool without any bound did not grow.
UNBOUNDED = 10_000


# Private memory in bytes, measured: the driver 0.5 GB, Ray itself 0.6, four readers and two writers
# 0.3 each. An aligner has 0.28 and 0.12 in its child, an inverter 0.65 with the demo model and 1.9
# with one of 1024 px.
SHARED_BYTES, PAIR_BYTES = 3_000_000_000, 2_400_000_000


def core_actors(asked: int | None, resources: Resources, local: bool) -> int:
    """How many actors of a core each there may be: `asked`, else as many as this machine has cores.

    Fewer where its memory does not hold an aligner and an inverter for each core. On a cluster no
    bound, as nodes may come later. A local Ray counts twice the machine's cores and one more
    (`running_ray`).
    """
    if asked or not local:
        return asked or UNBOUNDED
    by_memory = (memory_limit() - SHARED_BYTES) // PAIR_BYTES
    return max(1, min(int((resources.cpus - 1) / 2), by_memory))


def most_readers(local: bool) -> int:
    """How many tasks may read shards at once."""
    return READERS if local else CLUSTER_READERS


@dataclass(frozen=True)
class Pools:
    """How large each pool may grow, and what its workers reserve."""

    aligners: int
    inverters: int
    on_gpu: bool
    readers: int = READERS  # tasks, not actors
    writers: int = WRITERS
    cpus: StageCpus = field(default_factory=StageCpus)

    @classmethod
    def of(cls, config: JobConfig, resources: Resources, local: bool) -> Pools:
        """The config's sizes, else all cores and GPUs of this machine or no bound on a cluster.

        Raises `ConfigError` where a cluster that does not grow is too small.
        """
        on_gpu = resources.on_gpu(config.device)
        gpus = max(1, int(resources.gpus)) if local and on_gpu else None
        return cls(
            aligners=core_actors(config.align_workers, resources, local),
            inverters=core_actors(config.inverters or gpus, resources, local),
            on_gpu=on_gpu,
            readers=most_readers(local),
            writers=WRITERS if local else UNBOUNDED,
            cpus=stage_cpus("gpu" if on_gpu else "cpu", resources, local),
        )


def stage_cpus(inverter: Inverter, resources: Resources, local: bool) -> StageCpus:
    """Return what workers reserve: less where a cluster that does not grow is small."""
    return (
        StageCpus()
        if local or resources.grows
        else fit([node.resources for node in resources.nodes], inverter)
    )


@dataclass(frozen=True)
class Stages:
    """What the pipeline is made of; the benchmark puts stages that do nothing in their place."""

    align: type[Any] = AlignStage
    invert: type[Any] = InvertStage
    pretended_gpus: int | None = None  # of a local Ray


class _ForgetBlocks(ExecutionCallback):
    """Drops what Ray Data keeps of every block for `Dataset.stats()`: it grows with the parts."""

    def on_execution_step(self, executor: Any) -> None:
        for operator in executor._topology:
            if kept := getattr(operator, "_output_blocks_stats", None):
                kept.clear()


def configure_context(folder: Path | None = None, nodes_may_come: bool = False) -> None:
    """One row a block, no prints, nothing kept, no hurry, and a cluster that follows the backlog.

    What waits between the stages is bounded by Ray Data: half of the object store that there is at
    the time, which it overshoots by about 30 %. `folder` is the run's private one, if it has one;
    `nodes_may_come` says whether an autoscaler may start nodes.
    """
    context = DataContext.get_current()
    set_notes_folder(context, folder)
    context.target_max_block_size = 1
    context.print_on_execution_start = False
    context.enable_progress_bars = False
    context.custom_execution_callback_classes.append(_ForgetBlocks)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    end_vain_waits()
    if in_cluster():
        ask_for_backlog(nodes_may_come)


def inverter_needs(on_gpu: bool, cpus: StageCpus = StageCpus()) -> dict[str, Any]:  # noqa: B008
    """What Ray reserves for one inverter; on GPU nodes no CPU, so that they need offer none."""
    return {"num_gpus": 1, "num_cpus": 0} if on_gpu else {"num_gpus": 0, "num_cpus": cpus.invert}


def _inverter_pool(pools: Pools) -> ActorPoolStrategy:
    """Inverters; one with a GPU has two parts, so that its GPU does not wait for Arrow."""
    return ActorPoolStrategy(
        min_size=1,
        max_size=pools.inverters,
        max_concurrent_calls_per_actor=2 if pools.on_gpu else None,
        enable_true_multi_threading=pools.on_gpu,
    )


def _writer_pool(pools: Pools) -> ActorPoolStrategy:
    """Writers, each with a few parts, as a put is mostly waiting.

    Not tasks: Ray ends a process that had none for a second, and starts another for the next, which
    takes seconds of a core.
    """
    return ActorPoolStrategy(
        min_size=1,
        max_size=pools.writers,
        max_concurrent_calls_per_actor=PUTS_AT_ONCE,
        enable_true_multi_threading=True,
    )


def build_dataset(plan: Plan, pools: Pools, stages: Stages) -> Any:
    """The lazy Ray dataset of `plan`: read, align, invert, write."""
    recipe, cpus = plan.recipe, pools.cpus
    # An actor that asked for a GPU must not invert on the CPU of a node whose driver is broken.
    inversion = replace(recipe.inversion, device="cuda" if pools.on_gpu else "cpu")
    return (
        shard_source(plan)
        .flat_map(read_parts, num_cpus=cpus.read, compute=TaskPoolStrategy(size=pools.readers))
        .map(
            # Ray builds the class in its actors; its annotation wants a plain function.
            cast("Callable[[Row], Row]", stages.align),
            fn_constructor_args=(recipe.alignment,),
            compute=ActorPoolStrategy(min_size=1, max_size=pools.aligners),
            num_cpus=cpus.align,
        )
        .map(
            cast("Callable[[Row], Row]", stages.invert),
            fn_constructor_args=(inversion, recipe.columns),
            compute=_inverter_pool(pools),
            **inverter_needs(pools.on_gpu, cpus),
        )
        .map(
            cast("Callable[[Row], Row]", WriteStage),
            fn_constructor_args=(plan.writer,),
            compute=_writer_pool(pools),
            num_cpus=cpus.write,
        )
    )


def summaries(dataset: Any) -> Iterator[Row]:
    """The rows that come out, one a part and one a shard, as they are finished."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield from dataset.iter_rows()
