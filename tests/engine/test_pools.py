from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.config import JobConfig
from pipeline.engine import capacity
from pipeline.engine.capacity import UNBOUNDED, Pools, max_cpu_actors, reserved_cpus
from pipeline.engine.cluster import Node, Resources
from pipeline.engine.stages import STAGES, Invert
from pipeline.errors import ConfigError
from pipeline.table.stats import STAGE_NAMES


def config(**settings: object) -> JobConfig:
    return JobConfig.model_validate({"input": "in", "output": "out"} | settings)


CLUSTER = Resources(cpus=64, gpus=8, grows=True)
NO_BOUND = (16, UNBOUNDED, UNBOUNDED, UNBOUNDED)


@pytest.mark.parametrize(
    ("settings", "resources", "local", "workers", "on_gpu"),
    [
        ({}, Resources(cpus=17, gpus=0), True, (4, 8, 8, 2), False),
        ({}, Resources(cpus=3, gpus=0), True, (4, 1, 1, 2), False),
        ({}, Resources(cpus=17, gpus=2), True, (4, 8, 2, 2), True),
        ({}, CLUSTER, False, NO_BOUND, True),
        ({}, Resources(1, 0, grows=True), False, NO_BOUND, False),
        ({"device": "cpu"}, Resources(cpus=17, gpus=2), True, (4, 8, 8, 2), False),
        (
            {"device": "cuda", "align_workers": 30, "inverters": 8},
            Resources(cpus=0, gpus=0, grows=True),
            False,
            (16, 30, 8, UNBOUNDED),
            True,
        ),
        ({"align_workers": 3, "inverters": 5}, Resources(17, gpus=1), True, (4, 3, 5, 2), True),
    ],
)
def test_pools_default_to_the_machines_size(
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, object],
    resources: Resources,
    local: bool,
    workers: tuple[int, ...],
    on_gpu: bool,
) -> None:
    monkeypatch.setattr(capacity, "memory_limit", lambda: 10**12)
    pools = Pools.of(config(**settings), resources, local)
    assert tuple(pools.workers[stage.name] for stage in STAGES) == workers
    assert pools.on_gpu == on_gpu


@pytest.mark.parametrize(("gigabytes", "actors"), [(200, 31), (64, 25), (16, 5), (6, 1), (1, 1)])
def test_memory_limits_the_actors_of_a_machine(
    monkeypatch: pytest.MonkeyPatch, gigabytes: int, actors: int
) -> None:
    monkeypatch.setattr(capacity, "memory_limit", lambda: gigabytes * 10**9)
    many_cores = Resources(cpus=63, gpus=0)
    assert max_cpu_actors(None, many_cores, local=True) == actors
    assert max_cpu_actors(40, many_cores, local=True) == 40, "who asks for more gets it"


def test_stages_share_a_small_fixed_cluster() -> None:
    resources = Resources(cpus=2, gpus=0, nodes=(Node("one", {"CPU": 2.0}),))
    assert sum(Pools.of(config(), resources, local=False).cpus.values()) <= 2
    growing = Pools.of(config(), replace(resources, grows=True), local=False)
    assert growing.cpus == reserved_cpus(on_gpu=False)
    with pytest.raises(ConfigError, match="--device cuda"):
        Pools.of(config(device="cuda"), resources, local=False)


@pytest.mark.parametrize(
    ("device", "gpus", "expected"),
    [("auto", 0, False), ("auto", 1, True), ("cpu", 1, False), ("cuda", 0, True)],
)
def test_a_gpu_is_used_when_present_or_requested(device: str, gpus: float, expected: bool) -> None:
    assert Resources(cpus=4, gpus=gpus).on_gpu(device) == expected


@pytest.mark.parametrize("on_gpu", [True, False])
def test_an_inverter_takes_a_gpu_or_a_core(on_gpu: bool) -> None:
    pools = Pools({}, reserved_cpus(on_gpu=on_gpu), on_gpu)
    needs = pools.needs(Invert)
    assert (needs.get("num_gpus") == 1, needs["num_cpus"] > 0) == (on_gpu, not on_gpu)


def test_run_records_name_every_stage_in_order() -> None:
    assert tuple(stage.name for stage in STAGES) == STAGE_NAMES
