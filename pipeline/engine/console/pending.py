"""State of stages and cluster, and texts about what a job waits for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

PLURALS = {"read": "readers", "align": "aligners", "invert": "inverters", "write": "writers"}


class StageState(NamedTuple):
    """State of a stage in Ray Data's loop; readers are tasks and have no actors."""

    name: str  # of `STAGES`
    actors: int  # running
    pending: int  # actors that start, or wait for a node with free resources
    queued: int  # parts that wait for the stage
    active: int  # parts in work; for readers shards
    requested: int = 0  # further workers that are requested from an autoscaler
    cpus: float = 0.0  # per worker
    gpus: float = 0.0

    @property
    def missing(self) -> int:
        """Return the number of workers that the stage waits for."""
        return self.pending + self.requested


class ClusterState(NamedTuple):
    """Nodes of a cluster during this run; `cpus` and `gpus` are of the used ones."""

    alive: int
    seen: int  # lost ones included
    unused: int  # alive, but without access to the storage
    cpus: float
    gpus: float
    retries: int = 0  # of requests to storage, by the workers


def describe_missing(stages: Sequence[StageState]) -> str:
    """Return which workers are missing, such as `2 of 4 inverters (1 GPU each)`; "" if none is."""
    missing = (stage for stage in stages if stage.missing)
    return ", ".join(f"{_count(stage)}{_reserved(stage)}" for stage in missing)


def _count(stage: StageState) -> str:
    running = stage.active if stage.name == "read" else stage.actors
    return f"{stage.missing} of {running + stage.missing} {PLURALS[stage.name]}"


def _reserved(stage: StageState) -> str:
    needs = [f"{stage.gpus:g} GPU"] if stage.gpus else []
    needs += [f"{stage.cpus:g} CPU"] if stage.cpus else []
    return f" ({' and '.join(needs)} each)" if needs else ""


def describe_cluster(state: ClusterState) -> Iterator[str]:
    """Yield how many nodes are alive, and the CPUs and GPUs that they offer."""
    unused = f", {state.unused} not used" if state.unused else ""
    nodes = "node" if state.seen == 1 else "nodes"
    yield f"{state.alive} of {state.seen} {nodes} alive{unused}"
    yield f"{state.cpus:g} CPUs, {state.gpus:g} GPUs"
