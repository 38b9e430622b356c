"""Listening ports: access to Ray's dashboard means running commands on the cluster."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_private_ray_has_no_dashboard_and_needs_a_token() -> None:
    path = ROOT / "pipeline" / "engine" / "cluster.py"
    tree = ast.parse(path.read_text())
    started = [
        {given.arg: ast.unparse(given.value) for given in call.keywords}
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "ray.init"
    ]
    own = [arguments for arguments in started if arguments.get("address") == "'local'"]
    assert own
    assert all(arguments.get("include_dashboard") == "False" for arguments in own)
    assert "RAY_AUTH_MODE" in path.read_text()


def test_dashboards_listen_on_the_loopback_only() -> None:
    sources = [
        *(ROOT / "pipeline").rglob("*.py"),
        *(ROOT / "jobs").rglob("*.py"),
        *(ROOT / "cluster").rglob("*.yaml"),
    ]
    for path in sources:
        hosts = re.findall(r"dashboard[-_]host[=:\s\"']+([\w.:]+)", path.read_text())
        assert set(hosts) <= {"127.0.0.1", "localhost"}, path


def test_every_cluster_head_names_the_loopback() -> None:
    heads = [
        (path, line)
        for path in (ROOT / "cluster").glob("*.yaml")
        for line in path.read_text().splitlines()
        if "ray start --head" in line
    ]
    assert heads
    assert [path for path, line in heads if "--dashboard-host=127.0.0.1" not in line] == []
