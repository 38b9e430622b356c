"""Whether a job fits into its cluster, and how much of it each stage asks for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass
from typing import Literal

from pipeline.errors import ConfigError

# Where faces are inverted; None: the job inverts none (crops for training).
Inverter = Literal["cpu", "gpu", None]

LEAST_CPUS = 1.0  # of a cluster, for all stages


@dataclass(frozen=True)
class StageCpus:
    """CPUs that one worker of each stage reserves.

    All are different, so that Ray fuses no stage with the next: a fused shard is retried whole.
    An inverter with a GPU reserves no CPU.
    """

    align: float = 1.0
    invert: float = 0.9
    read: float = 0.5
    write: float = 0.25

    def scaled(self, factor: float) -> StageCpus:
        """Return the reservations times `factor`, in the steps of 0.001 that Ray can count."""
        return StageCpus(*(round(cpus * factor, 3) for cpus in astuple(self)))

    def each(self, inverter: Inverter) -> dict[str, float]:
        """Return the CPUs that each stage reserves for its first worker, the largest first."""
        needs = {"aligner": self.align, "reader": self.read, "writer": self.write}
        if inverter == "cpu":
            needs["inverter"] = self.invert
        return dict(sorted(needs.items(), key=lambda need: -need[1]))


def fit(nodes: Iterable[Mapping[str, float]], inverter: Inverter) -> StageCpus:
    """Return reservations with which one worker of each stage fits on `nodes` at once.

    `nodes` are Ray's resources ("CPU", "GPU") of each node of a cluster that does not grow. On
    small nodes workers reserve less than they use at most, and take turns. Raises `ConfigError`
    with the arithmetic where the nodes offer less than one CPU, or no GPU for an inverter on one.
    """
    nodes = list(nodes)
    cpus = [float(node.get("CPU", 0.0)) for node in nodes]
    offered = f"the cluster's nodes ({len(nodes)}) offer {sum(cpus):g} CPUs"
    if inverter == "gpu" and sum(node.get("GPU", 0.0) for node in nodes) < 1:
        raise ConfigError(
            f"--device cuda: an inverter takes a GPU, {offered} and none; no autoscaler is there "
            "to start a node: join one with a GPU by `ray start`, or pass --device cpu"
        )
    if sum(cpus) < LEAST_CPUS:
        needs = StageCpus().each(inverter)
        listed = ", ".join(f"{name} {need:g}" for name, need in needs.items())
        raise ConfigError(
            f"{offered}; one worker of each stage takes {sum(needs.values()):g} ({listed}), or "
            f"{LEAST_CPUS:g} where they take turns; no autoscaler is there to start a node: join "
            "one with CPUs by `ray start`"
        )
    percent = 100
    while not _fits(StageCpus().scaled(percent / 100), cpus, inverter):
        percent -= 1
    return StageCpus().scaled(percent / 100)


def _fits(stages: StageCpus, cpus: list[float], inverter: Inverter) -> bool:
    """Return whether the first worker of each stage finds room, the largest placed first."""
    free = list(cpus)
    for need in stages.each(inverter).values():
        free.sort(reverse=True)
        if free[0] < need:
            return False
        free[0] -= need
    return True
