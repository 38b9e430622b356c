from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.data import ExecutionResources

from pipeline.engine.cluster import running_ray
from pipeline.engine.ray_autoscaler import (
    Debounced,
    Placeholders,
    actors_wanted,
    missing,
)
from tests.engine.fake_cluster import NODE_TYPES, fake_cluster
from tests.storage.archives import write_tar
from tests.tiny_bundle import write_tiny_bundle

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Pool:
    """What is asked of a Ray Data actor pool."""

    parts: int
    actors: int = 1
    most: int = 100
    concurrency: int = 1

    def num_tasks_in_flight(self) -> int:
        return self.parts

    def current_size(self) -> int:
        return self.actors

    def min_size(self) -> int:
        return 1

    def max_size(self) -> int:
        return self.most

    def max_actor_concurrency(self) -> int:
        return self.concurrency


@dataclass
class Operator:
    """What is asked of a Ray Data operator."""

    pools: list[Pool] = field(default_factory=list)
    running: int = 0
    completed: bool = False

    def get_autoscaling_actor_pools(self) -> list[Pool]:
        return self.pools

    def num_active_tasks(self) -> int:
        return self.running

    def has_completed(self) -> bool:
        return self.completed


@pytest.mark.parametrize(
    ("pool", "wanted"),
    [
        (Pool(parts=0), 1),
        (Pool(parts=8, actors=4), 8),
        (Pool(parts=8, actors=4, most=6), 6),
        (Pool(parts=3, actors=8), 3),
        (Pool(parts=16, actors=4, concurrency=2), 8),
    ],
)
def test_a_part_claims_an_actor(pool: Pool, wanted: int) -> None:
    assert actors_wanted(pool) == wanted


@pytest.mark.parametrize(
    ("operator", "queued", "count"),
    [
        (Operator([Pool(parts=8, actors=4)]), 0, 4),
        (Operator([Pool(parts=2, actors=4)]), 9, 0),
        (Operator([Pool(parts=8, actors=4)], completed=True), 0, 0),
        (Operator(running=0), 3, 1),
        (Operator(running=2), 3, 0),
        (Operator(running=0), 0, 0),
    ],
)
def test_what_is_there_is_not_asked_for(operator: Operator, queued: int, count: int) -> None:
    assert missing(operator, queued) == count


def test_a_count_is_followed_only_when_it_lasts() -> None:
    debounced = Debounced(seconds=20)
    told = [debounced.observe(count, 5.0 * step) for step, count in enumerate([1, 1, 9, 1, 1, 1])]
    assert told == [1] * 6, "one peak"
    told = [debounced.observe(9, 30.0 + 5 * step) for step in range(6)]
    assert told == [1, 1, 1, 1, 9, 9]
    told = [debounced.observe(2, 60.0 + 5 * step) for step in range(6)]
    assert told == [9, 9, 9, 9, 2, 2]


@pytest.mark.timeout(600)
# Ray leaves the log files of its own processes to the garbage collector.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_placeholders_wait_for_room_until_they_are_not_wanted() -> None:
    with running_ray(pretended_gpus=1):
        placeholders = Placeholders(ExecutionResources(gpu=2, cpu=0))
        placeholders.hold(3)
        first, *others = placeholders.waiting
        assert ray.wait([first, *others], timeout=1)[0] == []
        placeholders.hold(1)
        assert placeholders.waiting == [first]
        for task in others:
            with pytest.raises(ray.exceptions.TaskCancelledError):
                ray.get(task, timeout=60)
        placeholders.hold(0)
        fitting = Placeholders(ExecutionResources(gpu=1, cpu=0))
        fitting.hold(1)
        (ran,) = fitting.waiting
        assert ray.get(ran, timeout=120) is None
        fitting.hold(1)
        assert fitting.waiting != [ran], "one that found room makes place for the next"


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Much that is quick to align, and at the end a tail that is not: `in/` and `model/`."""
    for name in (*"abcdef", "tail"):
        parts = 2 if name == "tail" else 10
        members = [(f"{number}.jpg", b"image") for number in range(parts)]
        write_tar(tmp_path / "in" / f"{name}.tar", members)
    write_tiny_bundle(str(tmp_path / "model"))
    return tmp_path


def run_growing_job(folder: Path) -> dict[str, Any]:
    with fake_cluster() as joined:
        run = subprocess.run(
            [sys.executable, "-m", "tests.engine.growing_job", str(folder)],
            env=os.environ | joined | {"PYTHONPATH": str(ROOT)},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
    assert run.returncode == 0, run.stderr[-2000:]
    return dict(json.loads(run.stdout.splitlines()[-1]))


@pytest.mark.slow
@pytest.mark.timeout(700)
def test_nodes_come_with_the_backlog_and_go_without_it(shards: Path) -> None:
    """From a head alone; no size is given, and GPUs are wanted beyond what the cluster may have."""
    told = run_growing_job(shards)
    print(json.dumps(told))
    assert (told["outcome"]["exit_code"], told["outcome"]["faces"]) == (0, 62)
    gpus = [nodes.get("gpu", 0) for _, nodes in told["trace"]]
    cpus = [nodes.get("cpu", 0) for _, nodes in told["trace"]]
    assert max(gpus) == NODE_TYPES["gpu"]["max_workers"], "asking for more stopped nothing"
    assert max(cpus) == NODE_TYPES["cpu"]["max_workers"]
    in_tail = [
        nodes
        for seconds, nodes in told["trace"][gpus.index(max(gpus)) :]
        if seconds < told["job_end"]
    ]
    assert min(nodes.get("gpu", 0) for nodes in in_tail) == 1, "GPU nodes go before the job ends"
    assert in_tail[-1].get("cpu", 0) >= 1, "and those that align the tail stay"
    assert (gpus[-1], cpus[-1]) == (0, 0)
