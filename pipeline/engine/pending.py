"""What a job waits for, in numbers: workers of each stage, nodes of the cluster, storage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

_PLURALS = {"read": "readers", "align": "aligners", "invert": "inverters", "write": "writers"}


class StageState(NamedTuple):
    """A stage as Ray Data's loop sees it; of readers, which are tasks, no actors."""

    name: str  # of `STAGES`
    actors: int  # that run
    pending: int  # actors that are started, or wait for room on a node
    queued: int  # parts that wait for it
    active: int  # parts, of readers shards, that it has
    requested: int = 0  # workers more that an autoscaler is asked for
    cpus: float = 0.0  # that one worker reserves
    gpus: float = 0.0

    @property
    def missing(self) -> int:
        """Workers that it waits for."""
        return self.pending + self.requested


class ClusterState(NamedTuple):
    """The nodes of a cluster that this run has seen, and what those offer that it may use."""

    alive: int
    seen: int  # those that were lost included
    unused: int  # alive, but not used as they do not reach the storage
    cpus: float
    gpus: float
    retries: int = 0  # of requests to storage, by the workers


def describe_missing(stages: Sequence[StageState]) -> str:
    """Return which workers are missing, such as `2 of 4 inverters (1 GPU each)`; "" if none is."""
    missing = (stage for stage in stages if stage.missing)
    return ", ".join(f"{_count(stage)}{_reserved(stage)}" for stage in missing)


def _count(stage: StageState) -> str:
    running = stage.active if stage.name == "read" else stage.actors
    return f"{stage.missing} of {running + stage.missing} {_PLURALS[stage.name]}"


def _reserved(stage: StageState) -> str:
    needs = [f"{stage.gpus:g} GPU"] if stage.gpus else []
    needs += [f"{stage.cpus:g} CPU"] if stage.cpus else []
    return f" ({' and '.join(needs)} each)" if needs else ""


def describe_cluster(state: ClusterState) -> Iterator[str]:
    """Yield the nodes that are alive of those seen, and what they offer."""
    unused = f", {state.unused} not used" if state.unused else ""
    nodes = "node" if state.seen == 1 else "nodes"
    yield f"{state.alive} of {state.seen} {nodes} alive{unused}"
    yield f"{state.cpus:g} CPUs, {state.gpus:g} GPUs"


def describe_retries(count: int) -> str:
    """Return how often requests to storage were repeated; "" for never."""
    return f"storage: {count} {'retry' if count == 1 else 'retries'}" if count else ""
