"""Alert rules use exported metrics, and fire only in the situation that they name."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.engine.prometheus import NAMES
from tests.cluster.configurations import FOLDER, load

RULES = load("alerts.yml")["groups"][0]["rules"]
MINUTES = 90

# For each alert the series of a job with the problem and of one without; one sample per minute.
CASES: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "RestyleStalled": (
        {'restyle_workers{stage="invert"}': "1+0x90", "restyle_parts_total": "5+1x20 25+0x70"},
        {'restyle_workers{stage="invert"}': "1+0x90", "restyle_parts_total": "5+1x90"},
    ),
    "RestyleNoInverter": (
        {
            'restyle_queued_parts{stage="invert"}': "3+0x90",
            'restyle_workers{stage="invert"}': "0+0x90",
            "restyle_parts_total": "5+1x90",
        },
        {
            'restyle_queued_parts{stage="invert"}': "3+0x90",
            'restyle_workers{stage="invert"}': "2+0x90",
            "restyle_parts_total": "5+1x90",
        },
    ),
    "RestyleFailedParts": (
        {"restyle_failures_total": "0+0x40 1+0x50"},
        {"restyle_failures_total": "0+0x90"},
    ),
    "RestyleGpuIdle": (
        {"restyle_inverter_busy_fraction": "0.9+0x40 0.2+0x50"},
        {"restyle_inverter_busy_fraction": "0.9+0x90"},
    ),
}


@pytest.fixture(scope="module")
def promtool() -> str:
    path = shutil.which("promtool")
    if path is None:
        pytest.skip("promtool is not installed: it comes with Prometheus")
    return path


def test_every_alert_uses_exported_metrics() -> None:
    for rule in RULES:
        names = re.findall(r"ray_(restyle_\w+)", rule["expr"])
        assert names
        assert set(names) <= set(NAMES), rule["alert"]
        assert rule["annotations"].keys() == {"summary", "description"}


def test_every_alert_has_a_test_case() -> None:
    assert CASES.keys() == {rule["alert"] for rule in RULES}


def test_prometheus_loads_the_rules() -> None:
    assert load("prometheus.yml")["rule_files"] == ["alerts.yml"]


@pytest.mark.parametrize("alert", CASES)
@pytest.mark.parametrize("in_trouble", [True, False])
def test_an_alert_fires_only_in_its_case(
    alert: str, in_trouble: bool, promtool: str, tmp_path: Path
) -> None:
    case: dict[str, Any] = {
        "interval": "1m",
        "input_series": [
            {"series": f"ray_{name}", "values": values}
            for name, values in CASES[alert][not in_trouble].items()
        ],
        "promql_expr_test": [
            {
                "expr": f'count(ALERTS{{alertname="{alert}", alertstate="firing"}}) or vector(0)',
                "eval_time": f"{MINUTES}m",
                "exp_samples": [{"labels": "{}", "value": int(in_trouble)}],
            }
        ],
    }
    test = {"rule_files": [str(FOLDER / "alerts.yml")], "tests": [case]}
    file = tmp_path / "test.yml"
    file.write_text(yaml.safe_dump(test))
    run = subprocess.run(
        [promtool, "test", "rules", str(file)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
