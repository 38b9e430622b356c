from __future__ import annotations

import pytest

from pipeline.config import JobConfig
from pipeline.engine.cluster import Resources
from pipeline.engine.dataset import ALIGN_CPUS, INVERT_CPUS, READ_CPUS, WRITE_CPUS, Pools


def config(**settings: object) -> JobConfig:
    return JobConfig.model_validate({"input": "in", "output": "out"} | settings)


@pytest.mark.parametrize(
    ("settings", "resources", "local", "pools"),
    [
        ({}, Resources(cpus=17, gpus=0), True, Pools(8, 8, on_gpu=False)),
        ({}, Resources(cpus=3, gpus=0), True, Pools(1, 1, on_gpu=False)),
        ({}, Resources(cpus=17, gpus=2), True, Pools(8, 2, on_gpu=True)),
        ({}, Resources(cpus=64, gpus=8), False, Pools(62, 8, on_gpu=True)),
        ({}, Resources(cpus=1, gpus=0), False, Pools(1, 1, on_gpu=False)),
        ({"device": "cpu"}, Resources(cpus=17, gpus=2), True, Pools(8, 8, on_gpu=False)),
        ({"device": "cuda"}, Resources(cpus=2, gpus=0), False, Pools(1, 1, on_gpu=True)),
        (
            {"align_workers": 3, "inverters": 5},
            Resources(cpus=17, gpus=1),
            True,
            Pools(3, 5, on_gpu=True),
        ),
    ],
)
def test_pools_are_the_machine_or_what_was_asked_for(
    settings: dict[str, object], resources: Resources, local: bool, pools: Pools
) -> None:
    assert Pools.of(config(**settings), resources, local) == pools


def test_no_two_stages_ask_for_the_same() -> None:
    assert len({READ_CPUS, ALIGN_CPUS, INVERT_CPUS, WRITE_CPUS}) == 4, "Ray would fuse them"
