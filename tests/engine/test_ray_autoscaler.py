from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.engine import ray_autoscaler
from pipeline.engine.ray_autoscaler import (
    FEW_CORES,
    GROW_AFTER_S,
    Debounced,
    LaterGrowth,
    install_autoscaler,
    missing_workers,
    target_actors,
)
from tests.engine.fake_cluster import NODE_TYPES, fake_cluster
from tests.storage.archives import write_tar
from tests.tiny_bundle import write_tiny_bundle

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Pool:
    """Used methods of a Ray Data actor pool."""

    parts: int
    actors: int = 1
    largest: int = 100
    concurrency: int = 1

    def num_tasks_in_flight(self) -> int:
        return self.parts

    def current_size(self) -> int:
        return self.actors

    def min_size(self) -> int:
        return 1

    def max_size(self) -> int:
        return self.largest

    def max_actor_concurrency(self) -> int:
        return self.concurrency


@dataclass
class Operator:
    """Used methods of a Ray Data operator."""

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
    ("pool", "expected"),
    [
        (Pool(parts=0), 1),
        (Pool(parts=8, actors=4), 8),
        (Pool(parts=8, actors=4, largest=6), 6),
        (Pool(parts=3, actors=8), 3),
        (Pool(parts=16, actors=4, concurrency=2), 8),
    ],
)
def test_a_part_claims_an_actor(pool: Pool, expected: int) -> None:
    assert target_actors(pool) == expected


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
    assert missing_workers(operator, queued) == count


@pytest.mark.parametrize(
    ("running", "pending", "waited", "grows"),
    [
        ((1, 0), (0, 1), 99 * GROW_AFTER_S, False),  # the second pool starts its first actor
        ((1, 0), (0, 0), 0.0, True),  # which died: it is replaced
        ((1, 1), (0, 0), 0.9 * GROW_AFTER_S, False),
        ((1, 1), (0, 0), GROW_AFTER_S, True),
    ],
)
def test_pools_grow_after_all_run(
    running: tuple[int, int],
    pending: tuple[int, int],
    waited: float,
    grows: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, grown = [100.0], []
    monkeypatch.setattr(ray_autoscaler.time, "monotonic", lambda: now[0])
    states = [
        SimpleNamespace(running=alive, pending=coming, restarting=0)
        for alive, coming in zip(running, pending, strict=True)
    ]
    topology = [
        SimpleNamespace(get_autoscaling_actor_pools=lambda: [1], get_actor_info=lambda s=state: s)
        for state in states
    ]
    scaler = LaterGrowth(SimpleNamespace(try_trigger_scaling=lambda: grown.append(1)), topology)
    scaler.try_trigger_scaling()
    now[0] += waited
    scaler.try_trigger_scaling()
    assert bool(grown) is grows


@pytest.mark.parametrize(("gpus", "later"), [(0, True), (1, False)])
def test_inverters_on_gpus_start_at_once(
    gpus: int, later: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_autoscaler, "in_cluster", lambda: False)
    monkeypatch.setattr(ray_autoscaler, "whole_cpus", lambda: FEW_CORES - 1)
    needs = [SimpleNamespace(gpu=0), SimpleNamespace(gpu=gpus)]
    topology = [
        SimpleNamespace(min_scheduling_resources=lambda n=need: n, get_autoscaling_actor_pools=list)
        for need in needs
    ]
    executor = SimpleNamespace(_actor_autoscaler=None, _topology=topology)
    install_autoscaler(executor, nodes_may_come=False)
    assert isinstance(executor._actor_autoscaler, LaterGrowth) is later


def test_a_count_is_followed_only_when_it_lasts() -> None:
    debounced = Debounced()
    result = [debounced.observe(count, 5.0 * step) for step, count in enumerate([1, 1, 9, 1, 1, 1])]
    assert result == [1] * 6, "one peak"
    result = [debounced.observe(9, 30.0 + 5 * step) for step in range(6)]
    assert result == [1, 1, 1, 1, 9, 9]
    result = [debounced.observe(2, 60.0 + 5 * step) for step in range(6)]
    assert result == [9, 9, 9, 9, 2, 2]


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
def test_nodes_follow_the_backlog(shards: Path) -> None:
    """Start with a head only; the job needs more GPUs than the cluster may have."""
    result = run_growing_job(shards)
    print(json.dumps(result))
    assert (result["outcome"]["exit_code"], result["outcome"]["faces"]) == (0, 62)
    gpus = [nodes.get("gpu", 0) for _, nodes in result["trace"]]
    cpus = [nodes.get("cpu", 0) for _, nodes in result["trace"]]
    assert max(gpus) == NODE_TYPES["gpu"]["max_workers"], "asking for more stopped nothing"
    assert max(cpus) == NODE_TYPES["cpu"]["max_workers"]
    in_tail = [
        nodes
        for seconds, nodes in result["trace"][gpus.index(max(gpus)) :]
        if seconds < result["job_end"]
    ]
    assert min(nodes.get("gpu", 0) for nodes in in_tail) == 1, "GPU nodes go before the job ends"
    assert in_tail[-1].get("cpu", 0) >= 1, "and those that align the tail stay"
    assert (gpus[-1], cpus[-1]) == (0, 0)
