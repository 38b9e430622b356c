"""Tracked files in `cluster/` contain no credential."""

from __future__ import annotations

import re

import pytest

from pipeline.config import load_config
from tests.cluster.configurations import EVERY, FOLDER

FILES = (
    *EVERY,
    "Containerfile",
    "README.md",
    "prometheus.yml",
    "alerts.yml",
    "grafana_dashboard.json",
)
SECRETS = {
    "AWS key id": r"\b(AKIA|ASIA)[0-9A-Z]{16}\b",
    "a key in a variable": r"(?i)(secret|password|token|access_key)\w*\s*[:=]\s*['\"]?[\w/+]{16,}",
    "PEM": r"-----BEGIN",
    "credentials in a URI": r"://[^/\s]+:[^/\s]+@",
    "a container's token": r"gh[pousr]_\w{20,}|glpat-\w{20,}",
}


@pytest.mark.parametrize("name", FILES)
def test_cluster_files_contain_no_secret(name: str) -> None:
    text = (FOLDER / name).read_text()
    assert [kind for kind, pattern in SECRETS.items() if re.search(pattern, text)] == []


def test_every_pattern_finds_its_secret() -> None:
    planted = "AKIAABCDEFGHIJKLMNOP aws_secret_access_key: abcdefghijklmnopqrst -----BEGIN KEY"
    planted += " s3://me:word@bucket ghp_abcdefghijklmnopqrstuv"
    assert all(re.search(pattern, planted) for pattern in SECRETS.values())


def test_run_settings_are_valid_for_the_job() -> None:
    config = load_config(str(FOLDER / "run.yaml"), {})
    assert config.device == "cuda"
    assert config.input.startswith("s3://")
