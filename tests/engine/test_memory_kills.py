from __future__ import annotations

import os
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
import ray

from pipeline.config import JobConfig
from pipeline.engine.cluster import RaySession
from pipeline.engine.ledger import Ledger
from pipeline.engine.nodes import memory_kills
from pipeline.engine.nodes.memory_kills import MemoryKills, advice, parse_kills
from pipeline.engine.stages.base import DIED
from pipeline.table import RunRecord
from tests.engine.conftest import failure

METRIC = "ray_memory_manager_worker_eviction_total"


def exported(**counts: int) -> str:
    """Return the text of a Ray 2.60 exporter for killed workers, by name."""
    lines = [f"# HELP {METRIC} Total worker eviction events", f"# TYPE {METRIC} counter"]
    for name, count in counts.items():
        labels = f'Component="raylet",Name="MapWorker(Map({name})).__init__",Type="Actor"'
        lines.append(f"{METRIC}{{{labels}}} {count}.0")
    return "\n".join(lines)


def test_workers_are_counted_by_stage() -> None:
    text = exported(Invert=11, Align=2, OfAnotherJob=5)
    text += f'\n{METRIC}{{Name="FlatMap(Read)",Type="Task"}} 3.0\nray_other 7'
    assert parse_kills(text) == {"invert": 11, "align": 2, "read": 3}


@pytest.mark.parametrize(
    ("stage", "workers", "settings", "expected"),
    [
        ("invert", {"invert": 4}, {}, "lower --inverters to 2 (it is at 4)"),
        ("invert", {"invert": 1}, {}, "lower --batch-size to 8 (it is at 16)"),
        ("invert", {"invert": 1}, {"batch_size": 1}, "take nodes with more memory"),
        ("align", {"align": 3}, {}, "lower --align-workers to 1 (it is at 3)"),
        ("align", {}, {"max_pixels": 1000}, "lower --max-pixels to 500 (it is at 1000)"),
        ("read", {"align": 6, "invert": 2}, {}, "lower --align-workers to 3 (it is at 6)"),
    ],
)
def test_advice_names_a_flag_and_value(
    stage: str, workers: dict[str, int], settings: dict[str, int], expected: str
) -> None:
    config = JobConfig.model_validate({"input": "in", "output": "out"} | settings)
    assert advice(stage, workers, config, batch=16) == expected


def test_kills_before_the_run_do_not_count(
    monkeypatch: pytest.MonkeyPatch, ledger: Ledger, outcome: RunRecord
) -> None:
    counts = {"Invert": 3}

    class Exporter(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(exported(**counts).encode())

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    said: list[str] = []
    with HTTPServer(("127.0.0.1", 0), Exporter) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        node = {"NodeID": "n", "NodeManagerAddress": "127.0.0.1"}
        node |= {"MetricsExportPort": str(server.server_port)}
        monkeypatch.setattr(memory_kills, "_alive_nodes", lambda: [node])
        kills = MemoryKills(lambda stage: f"lower {stage}", said.append)
        ledger.explain_deaths = kills.explain_now
        kills.start()
        assert (kills.by_node, said) == ({}, [])
        counts["Invert"] = 8
        died = failure(0, "invert", RuntimeError(f"5 {DIED}"))
        ledger.take(replace(died, node="127.0.0.1"))
        server.shutdown()
    result = "node 127.0.0.1 ran out of memory, and Ray ended an inverter 5 times: lower invert"
    assert said == kills.stop() == [result]
    assert outcome.errors[0].endswith(f"; {result}")


@pytest.mark.slow  # Ray counts for ten seconds before it exports
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ray_counts_an_actor_that_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    total, free = (int(facts[name].split()[0]) for name in ("MemTotal", "MemAvailable"))
    monkeypatch.setenv("RAY_memory_usage_threshold", f"{(total - free) / total + 0.1:.3f}")
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "100")
    size = total * 1024 // 5

    class InvertHungrily:
        def work(self) -> None:
            held = bytearray(size)
            for place in range(0, size, os.sysconf("SC_PAGE_SIZE")):
                held[place] = 1
            time.sleep(600)

    with RaySession():
        kills = MemoryKills(lambda stage: f"lower {stage}", lambda _: None)
        kills.start()
        kind = ray.remote(InvertHungrily).options(max_restarts=-1, max_task_retries=-1)
        actor = kind.remote()
        actor.work.remote()
        deadline = time.monotonic() + 300
        while not kills.by_node:
            assert time.monotonic() < deadline
            time.sleep(1)
        ray.kill(actor)
        (result,) = kills.stop()
    assert "ran out of memory, and Ray ended an inverter" in result
