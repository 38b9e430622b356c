from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.config import JobConfig
from pipeline.engine import dataset
from pipeline.engine.capacity import StageCpus
from pipeline.engine.cluster import Node, Resources
from pipeline.engine.dataset import UNBOUNDED, Pools, core_actors, inverter_needs
from pipeline.errors import ConfigError


def config(**settings: object) -> JobConfig:
    return JobConfig.model_validate({"input": "in", "output": "out"} | settings)


@pytest.mark.parametrize(
    ("settings", "resources", "local", "pools"),
    [
        ({}, Resources(cpus=17, gpus=0), True, Pools(8, 8, on_gpu=False)),
        ({}, Resources(cpus=3, gpus=0), True, Pools(1, 1, on_gpu=False)),
        ({}, Resources(cpus=17, gpus=2), True, Pools(8, 2, on_gpu=True)),
        (
            {},
            Resources(cpus=64, gpus=8, grows=True),
            False,
            Pools(UNBOUNDED, UNBOUNDED, True, 16, UNBOUNDED),
        ),
        ({}, Resources(1, 0, grows=True), False, Pools(UNBOUNDED, UNBOUNDED, False, 16, UNBOUNDED)),
        ({"device": "cpu"}, Resources(cpus=17, gpus=2), True, Pools(8, 8, on_gpu=False)),
        (
            {"device": "cuda", "align_workers": 30, "inverters": 8},
            Resources(cpus=0, gpus=0, grows=True),
            False,
            Pools(30, 8, on_gpu=True, readers=16, writers=UNBOUNDED),
        ),
        (
            {"align_workers": 3, "inverters": 5},
            Resources(cpus=17, gpus=1),
            True,
            Pools(3, 5, on_gpu=True),
        ),
    ],
)
def test_pools_are_the_machine_or_what_was_asked_for(
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, object],
    resources: Resources,
    local: bool,
    pools: Pools,
) -> None:
    monkeypatch.setattr(dataset, "memory_limit", lambda: 10**12)
    assert Pools.of(config(**settings), resources, local) == pools


@pytest.mark.parametrize(("gigabytes", "actors"), [(200, 31), (64, 25), (16, 5), (6, 1), (1, 1)])
def test_memory_limits_the_actors_of_a_machine(
    monkeypatch: pytest.MonkeyPatch, gigabytes: int, actors: int
) -> None:
    monkeypatch.setattr(dataset, "memory_limit", lambda: gigabytes * 10**9)
    many_cores = Resources(cpus=63, gpus=0)
    assert core_actors(None, many_cores, local=True) == actors
    assert core_actors(40, many_cores, local=True) == 40, "who asks for more gets it"


def test_a_small_cluster_that_does_not_grow_is_shared() -> None:
    resources = Resources(cpus=2, gpus=0, nodes=(Node("one", {"CPU": 2.0}),))
    reserved = Pools.of(config(), resources, local=False).cpus
    assert sum(reserved.each("cpu").values()) <= 2
    assert Pools.of(config(), replace(resources, grows=True), local=False).cpus == StageCpus()
    with pytest.raises(ConfigError, match="--device cuda"):
        Pools.of(config(device="cuda"), resources, local=False)


@pytest.mark.parametrize(
    ("device", "gpus", "expected"),
    [("auto", 0, False), ("auto", 1, True), ("cpu", 1, False), ("cuda", 0, True)],
)
def test_a_gpu_is_used_where_there_is_one_or_it_is_asked_for(
    device: str, gpus: float, expected: bool
) -> None:
    assert Resources(cpus=4, gpus=gpus).on_gpu(device) == expected


@pytest.mark.parametrize("on_gpu", [True, False])
def test_an_inverter_takes_a_gpu_or_a_core(on_gpu: bool) -> None:
    needs = inverter_needs(on_gpu)
    assert (needs["num_gpus"] == 1, needs["num_cpus"] > 0) == (on_gpu, not on_gpu)
