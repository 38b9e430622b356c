"""Configuration files in `cluster/`, loaded for the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "cluster"
LAUNCHED = ("aws.yaml", "gcp.yaml", "on_premise.yaml")
CLOUDS = ("aws.yaml", "gcp.yaml")
MANIFESTS = ("kuberay/cluster.yaml", "kuberay/job.yaml")
EVERY = (*LAUNCHED, *MANIFESTS, "run.yaml")


def load(name: str) -> dict[str, Any]:
    """Return the content of the YAML file `cluster/NAME`."""
    return dict(yaml.safe_load((FOLDER / name).read_text()))


def ray_cluster(name: str) -> dict[str, Any]:
    """Return the RayCluster's spec in a manifest of either kind."""
    spec = load(name)["spec"]
    return dict(spec.get("rayClusterSpec", spec))
