from __future__ import annotations

from dataclasses import astuple

import pytest

from pipeline.engine.capacity import Inverter, StageCpus, fit
from pipeline.errors import ConfigError


def nodes(*cpus: float, gpus: float = 0) -> list[dict[str, float]]:
    return [{"CPU": count, "GPU": gpus} for count in cpus]


@pytest.mark.parametrize("cpus", [(4,), (3,), (2, 2), (64, 64), (1, 1, 1)])
def test_a_cluster_with_room_is_asked_for_whole_workers(cpus: tuple[float, ...]) -> None:
    assert fit(nodes(*cpus), "cpu") == StageCpus()


@pytest.mark.parametrize("cpus", [(1,), (2,), (1, 1), (0, 1), (2.5,), (0.5, 0.5)])
@pytest.mark.parametrize("inverter", ["cpu", "gpu", None])
def test_a_small_cluster_holds_a_worker_of_each_stage(
    cpus: tuple[float, ...], inverter: Inverter
) -> None:
    stages = fit(nodes(*cpus, gpus=1), inverter)
    assert sum(stages.each(inverter).values()) <= sum(cpus)
    assert len(set(astuple(stages))) == 4, "Ray fuses stages that ask for the same"
    assert min(astuple(stages)) > 0


@pytest.mark.parametrize(
    ("offered", "inverter", "message"),
    [
        (nodes(0), "cpu", r"nodes \(1\) offer 0 CPUs; one worker of each stage takes 2\.65 "),
        (nodes(0.5), "cpu", r"offer 0\.5 CPUs"),
        (nodes(0, gpus=1), "gpu", r"takes 1\.75 \(aligner 1, reader 0\.5, writer 0\.25\)"),
        (nodes(8, 8), "gpu", r"--device cuda: .* nodes \(2\) offer 16 CPUs and none"),
        ([], None, r"nodes \(0\) offer 0 CPUs"),
    ],
)
def test_a_cluster_without_room_is_refused_with_the_numbers(
    offered: list[dict[str, float]], inverter: Inverter, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        fit(offered, inverter)
