from __future__ import annotations

import math
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import ray
from ray.data import DataContext

import pipeline
from pipeline.config import JobConfig
from pipeline.engine.nodes import node_checks
from pipeline.engine.nodes.node_checks import (
    NodeChecks,
    blocker_needs,
    local_paths,
    nodes_checked,
)
from pipeline.engine.nodes.node_registry import running_registry
from pipeline.engine.nodes.node_report import NodeReport, code_digest, node_report, versions
from pipeline.errors import ClusterError, ConfigError
from tests.engine.on_ray import MARKS
from tests.engine.on_ray.stages import AfterVerdict

pytestmark = MARKS


def config(**settings: object) -> JobConfig:
    return JobConfig.model_validate({"input": "s3://b/in", "output": "s3://b/out"} | settings)


def test_only_local_paths_must_be_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("photos", "model", "first"):
        (tmp_path / name).mkdir()
    assert local_paths(config(identity="none")) == {}
    assert local_paths(config(input="s3://b/in", init="s3://b/first", model="s3://b/m")) == {}
    assert local_paths(config(input="photos", model="model", init=str(tmp_path / "first"))) == {
        str(tmp_path / "photos"): "input",
        "model": "model",
        str(tmp_path / "first"): "init",
    }
    assert local_paths(config(target="photos")) == {str(tmp_path / "photos"): "target"}


def test_outside_a_cluster_nothing_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_checks, "in_cluster", lambda: False)
    with nodes_checked(config(output=str(tmp_path / "table"))):
        assert not (tmp_path / "table").exists()


@pytest.fixture
def notices() -> list[str]:
    return []


def own_address() -> str:
    (node,) = [item for item in ray.nodes() if item["Alive"]]
    return str(node["NodeManagerAddress"])


@pytest.mark.usefixtures("one_node")
def test_a_node_is_asked_for_each_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_checks, "PATIENCE_S", 1)
    there, absent = str(tmp_path), str(tmp_path / "elsewhere")
    NodeChecks({there: "output"}).wait()
    with pytest.raises(ConfigError, match=r"the output is a local path, .* has no '.*/elsewhere'"):
        NodeChecks({there: "input", absent: "output"}).wait()


@pytest.mark.usefixtures("one_node")
def test_a_node_with_other_code_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_checks, "code_digest", lambda: "0123456789abcdef")
    with pytest.raises(
        ConfigError, match=rf"node {own_address()} has other code .*{code_digest()}"
    ):
        NodeChecks({}).wait()


@pytest.mark.usefixtures("one_node")
def test_a_node_with_other_packages_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_checks, "versions", lambda: versions() | {"numpy": "1.0"})
    with pytest.raises(ConfigError, match=rf"node {own_address()} .*: numpy .* \(here 1\.0\)"):
        NodeChecks({}).wait()


@pytest.mark.usefixtures("one_node")
def test_a_node_without_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = ray.put("ModuleNotFoundError: No module named 'duckdb'")
    monkeypatch.setattr(node_checks, "_ask", lambda *_: answer)
    with pytest.raises(ConfigError, match=rf"node {own_address()} lacks .*'duckdb'\): install it"):
        NodeChecks({}).wait()


@pytest.mark.usefixtures("one_node")
def test_a_run_ends_without_any_usable_node(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    with pytest.raises(ClusterError, match=rf"no node reaches the storage; node {own_address()}: "):
        NodeChecks({}, "abc://bucket/table").wait()


@pytest.mark.usefixtures("one_node")
def test_a_node_without_storage_gets_no_work(notices: list[str]) -> None:
    """A second node that is only reported continues."""
    (node,) = [item for item in ray.nodes() if item["Alive"]]
    checks = NodeChecks({}, notice=notices.append)
    alive = {node["NodeID"]: node, "another": {"Resources": {"CPU": 4.0}}}
    free = ray.cluster_resources()["CPU"]
    wait_until(lambda: ray.available_resources().get("CPU", 0.0) == free)
    checks._block(node["NodeID"], own_address(), "StorageError: no route", alive)
    assert notices == [
        f"node {own_address()} is not used, as it does not reach the storage: "
        "StorageError: no route"
    ]
    wait_until(lambda: ray.available_resources().get("CPU", 0.0) == 0)
    checks.release()
    wait_until(lambda: ray.available_resources().get("CPU", 0.0) == free)


def wait_until(holds: Callable[[], bool], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.usefixtures("one_node")
def test_workers_wait_until_their_node_may_work() -> None:
    node_id = ray.get_runtime_context().get_node_id()
    actor = ray.remote(AfterVerdict).options(num_cpus=0, max_restarts=-1, max_task_retries=-1)
    context = DataContext.get_current()
    with running_registry(context) as registry:
        began = actor.remote(context).began.remote()
        assert ray.wait([began], timeout=1)[0] == []
        registry.judge.remote(node_id, False)  # the worker ends, is started again, and so on
        assert ray.wait([began], timeout=5)[0] == []
        NodeChecks({}, registry=registry).wait()
        assert ray.get(began, timeout=60)
        registry.add_retry.remote()
        assert ray.get(registry.retries.remote()) == 1


@pytest.mark.parametrize(
    ("cpus", "gpus", "needs"),
    [
        (2.5, 0.0, [(1.0, 0.0), (1.0, 0.0), (0.5, 0.0)]),
        (0.0, 2.0, [(0.0, 1.0)] * 2),
        (64.0, 0.0, [(2.0, 0.0)] * 32),
    ],
)
def test_a_node_is_held_in_small_shares(
    cpus: float, gpus: float, needs: list[tuple[float, float]]
) -> None:
    assert list(blocker_needs(cpus, gpus)) == needs


@pytest.mark.usefixtures("one_node")
def test_a_lost_node_is_named(notices: list[str]) -> None:
    checks = NodeChecks({}, notice=notices.append)
    checks.wait()
    checks._alive["gone"] = "10.77.0.3"
    checks._polled = -math.inf
    checks.poll()
    assert notices == ["node 10.77.0.3 is lost: its parts are repeated"]


def test_the_same_code_has_the_same_digest_anywhere(tmp_path: Path) -> None:
    shutil.copytree(Path(pipeline.__file__).parent, tmp_path / "pipeline", ignore=_BULKY)
    code = "from pipeline.engine.nodes.node_report import code_digest; print(code_digest())"

    def digest() -> str:
        run = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return run.stdout.strip()

    assert digest() == code_digest()
    changed = tmp_path / "pipeline" / "metrics" / "pixel.py"
    changed.write_text(changed.read_text().replace("mean", "sum") + "\n")
    assert digest() != code_digest()


_BULKY = shutil.ignore_patterns("*.safetensors", "*.tar", "*.jpg", "__pycache__")


def test_a_report_names_code_versions_and_paths(tmp_path: Path) -> None:
    absent = str(tmp_path / "absent")
    report = node_report([str(tmp_path), absent], str(tmp_path), patience_s=0)
    assert report == NodeReport(code_digest(), versions(), [absent], "")


@pytest.mark.usefixtures("one_node")
def test_nodes_must_see_the_outputs_marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_checks, "in_cluster", lambda: True)
    table = tmp_path / "table"
    with nodes_checked(config(output=str(table))) as checks:
        (marker,) = table.iterdir()
        assert checks is not None
        assert checks.paths == {str(marker): "output"}
        checks.poll()
    assert list(table.iterdir()) == []
