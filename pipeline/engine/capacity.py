"""Worker pools: size per stage, CPUs and GPUs per worker, and whether a cluster fits them.

Errors are `ConfigError`s, raised before any work. Does not import Ray: takes its resource counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.engine.stages import STAGES, Stage
from pipeline.errors import ConfigError
from pipeline.machine import memory_limit

if TYPE_CHECKING:
    from pipeline.config import JobConfig
    from pipeline.engine.cluster import Resources

MIN_CPUS = 1.0  # that a cluster needs for all stages together
READERS, WRITERS = 4, 2
# One reader gets about 100 MB/s from a bucket, enough for a dozen aligners.
CLUSTER_READERS = 16
# Larger than any cluster: there Ray Data starts an actor only where its resources are free, and
# nodes start as the backlog requests them. Ray issue 59144: a pool without a bound did not grow.
UNBOUNDED = 10_000
# Private memory in bytes, measured: the driver 0.5 GB, Ray itself 0.6, four readers and two writers
# 0.3 each. An aligner has 0.28 and 0.12 in its child, an inverter 0.65 with the demo model and 1.9
# with one of 1024 px.
SHARED_BYTES, PAIR_BYTES = 3_000_000_000, 2_400_000_000


def reserved_cpus(
    stages: Sequence[type[Stage]] = STAGES, *, on_gpu: bool, scale: float = 1.0
) -> dict[str, float]:
    """Return the CPUs that one worker of each stage reserves, in steps of 0.001 as Ray counts them.

    A worker with a GPU reserves no CPU, so GPU nodes do not have to offer any.
    """
    return {
        stage.name: 0 if on_gpu and stage.resources.takes_gpu else round(cpus * scale, 3)
        for stage in stages
        for cpus in [stage.resources.cpus]
    }


def fit(
    nodes: Iterable[Mapping[str, float]], stages: Sequence[type[Stage]] = STAGES, *, on_gpu: bool
) -> dict[str, float]:
    """Return CPU reservations with which one worker of each stage fits on `nodes` at the same time.

    `nodes` are Ray's resources ("CPU", "GPU") of each node of a cluster that does not grow. On
    small nodes workers reserve less than their peak use and share the CPUs. Raises `ConfigError`
    with the numbers if the nodes offer less than one CPU, or no GPU for an inverter that needs one.
    """
    nodes = list(nodes)
    cpus = [float(node.get("CPU", 0.0)) for node in nodes]
    offered = f"the cluster's nodes ({len(nodes)}) offer {sum(cpus):g} CPUs"
    if on_gpu and sum(node.get("GPU", 0.0) for node in nodes) < 1:
        raise ConfigError(
            f"--device cuda: an inverter takes a GPU, {offered} and none; no autoscaler can start "
            "a node: join one with a GPU by `ray start`, or pass --device cpu"
        )
    if sum(cpus) < MIN_CPUS:
        needs = reserved_cpus(stages, on_gpu=on_gpu)
        workers = {stage.resources.worker: needs[stage.name] for stage in stages}
        largest = sorted(((need, name) for name, need in workers.items() if need), reverse=True)
        listed = ", ".join(f"{name} {need:g}" for need, name in largest)
        raise ConfigError(
            f"{offered}; one worker of each stage takes {sum(needs.values()):g} ({listed}), or "
            f"{MIN_CPUS:g} where they share; no autoscaler can start a node: join one with CPUs by "
            "`ray start`"
        )
    percent = 100
    while not _fits(reserved_cpus(stages, on_gpu=on_gpu, scale=percent / 100), cpus):
        percent -= 1
    return reserved_cpus(stages, on_gpu=on_gpu, scale=percent / 100)


def _fits(needs: Mapping[str, float], cpus: list[float]) -> bool:
    """Return whether one worker of each stage fits; the largest is placed first."""
    free = list(cpus)
    for need in sorted(needs.values(), reverse=True):
        free.sort(reverse=True)
        if free[0] < need:
            return False
        free[0] -= need
    return True


def max_cpu_actors(requested: int | None, resources: Resources, local: bool) -> int:
    """Return the maximum number of one-core actors: `requested`, else the number of cores.

    Lower if the memory does not hold an aligner and an inverter per core. Unbounded on a cluster,
    where nodes may join later. A local Ray offers twice the machine's cores plus one
    (`RaySession`).
    """
    if requested or not local:
        return requested or UNBOUNDED
    by_memory = (memory_limit() - SHARED_BYTES) // PAIR_BYTES
    return max(1, min(int((resources.cpus - 1) / 2), by_memory))


@dataclass(frozen=True)
class Pools:
    """Worker pools of a run: maximum size and reserved CPUs, by stage."""

    workers: Mapping[str, int]  # by stage
    cpus: Mapping[str, float]  # by stage
    on_gpu: bool = False

    @classmethod
    def of(cls, config: JobConfig, resources: Resources, local: bool) -> Pools:
        """Return pools of the config's sizes, else of all local cores and GPUs, or unbounded.

        Raises `ConfigError` if a cluster without an autoscaler is too small.
        """
        on_gpu = resources.on_gpu(config.device)
        gpus = max(1, int(resources.gpus)) if local and on_gpu else None
        return cls.for_stages(
            STAGES,
            resources,
            local,
            on_gpu=on_gpu,
            align=max_cpu_actors(config.align_workers, resources, local),
            invert=max_cpu_actors(config.inverters or gpus, resources, local),
        )

    @classmethod
    def for_stages(
        cls,
        stages: Sequence[type[Stage]],
        resources: Resources,
        local: bool,
        *,
        on_gpu: bool = False,
        **workers: int,  # by stage
    ) -> Pools:
        """Return the pools of `stages`; readers and writers have a default size."""
        defaults = {
            "read": READERS if local else CLUSTER_READERS,
            "write": WRITERS if local else UNBOUNDED,
        }
        if local or resources.grows:
            cpus = reserved_cpus(stages, on_gpu=on_gpu)
        else:
            cpus = fit([node.resources for node in resources.nodes], stages, on_gpu=on_gpu)
        return cls(defaults | workers, cpus, on_gpu)

    def needs(self, stage: type[Stage] | Stage) -> dict[str, Any]:
        """Return the Ray options that reserve the resources of one worker of `stage`."""
        gpus = int(self.on_gpu and stage.resources.takes_gpu)
        return {"num_cpus": self.cpus[stage.name], **({"num_gpus": gpus} if gpus else {})}

    def parts_at_once(self, stage: Stage) -> int:
        """Return how many parts one worker takes at once: more than one if a GPU does the work."""
        cpu_only = stage.resources.takes_gpu and not self.on_gpu
        return 1 if cpu_only else stage.resources.parts_at_once
