from __future__ import annotations

import pytest

from pipeline.engine.capacity import fit, reserved_cpus
from pipeline.errors import ConfigError


def nodes(*cpus: float, gpus: float = 0) -> list[dict[str, float]]:
    return [{"CPU": count, "GPU": gpus} for count in cpus]


@pytest.mark.parametrize("cpus", [(4,), (3,), (2, 2), (64, 64), (1, 1, 1)])
def test_a_cluster_with_room_is_asked_for_whole_workers(cpus: tuple[float, ...]) -> None:
    assert fit(nodes(*cpus), on_gpu=False) == reserved_cpus(on_gpu=False)


@pytest.mark.parametrize("cpus", [(1,), (2,), (1, 1), (0, 1), (2.5,), (0.5, 0.5)])
@pytest.mark.parametrize("on_gpu", [False, True])
def test_a_small_cluster_holds_a_worker_of_each_stage(
    cpus: tuple[float, ...], on_gpu: bool
) -> None:
    reserved = fit(nodes(*cpus, gpus=1), on_gpu=on_gpu)
    assert sum(reserved.values()) <= sum(cpus)
    assert len(set(reserved.values())) == 4, "Ray fuses stages that ask for the same"
    assert [name for name, need in reserved.items() if not need] == ["invert"] * on_gpu


@pytest.mark.parametrize(
    ("offered", "on_gpu", "message"),
    [
        (nodes(0), False, r"nodes \(1\) offer 0 CPUs; one worker of each stage takes 2\.65 "),
        (nodes(0.5), False, r"offer 0\.5 CPUs"),
        (nodes(0, gpus=1), True, r"takes 1\.75 \(aligner 1, reader 0\.5, writer 0\.25\)"),
        (nodes(8, 8), True, r"--device cuda: .* nodes \(2\) offer 16 CPUs and none"),
        ([], False, r"nodes \(0\) offer 0 CPUs"),
    ],
)
def test_a_cluster_without_room_is_refused_with_the_numbers(
    offered: list[dict[str, float]], on_gpu: bool, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        fit(offered, on_gpu=on_gpu)
