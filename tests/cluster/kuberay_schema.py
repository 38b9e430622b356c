"""Schemas for `cluster/kuberay/`: servers drop unknown fields, or refuse them late.

Pods are validated by Kubernetes' own OpenAPI schema, which a package contains, and KubeRay's fields
by its CustomResourceDefinitions, if a copy of them is next to the checkout.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml
from jsonschema import Draft202012Validator

KUBERNETES = "1.33"
CRDS = {"RayCluster": "ray.io_rayclusters.yaml", "RayJob": "ray.io_rayjobs.yaml"}


def pod_templates(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the templates of the head's pod and of each worker group's pods."""
    spec = manifest["spec"].get("rayClusterSpec", manifest["spec"])
    return [group["template"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]


def pod_problems(manifest: dict[str, Any]) -> list[str]:
    """Return what Kubernetes would drop or refuse: the first problem of each pod."""
    errors = []
    for template in pod_templates(manifest):
        pod = {"apiVersion": "v1", "kind": "PodTemplate", "template": template}
        try:
            kubernetes_validate.validate(pod, KUBERNETES, strict=True)
        except kubernetes_validate.ValidationError as error:
            errors.append(error)
    return [f"{error.json_path}: {error.message}" for error in errors]


def operator_problems(manifest: dict[str, Any], crds: Path) -> list[str]:
    """Return what KubeRay's operator would drop or refuse, according to `crds`."""
    schema = operator_schema(crds / CRDS[manifest["kind"]], manifest["apiVersion"])
    errors = Draft202012Validator(schema).iter_errors(manifest)
    return [f"{error.json_path}: {error.message}" for error in errors]


@cache
def operator_schema(path: Path, api_version: str) -> dict[str, Any]:
    """Return the schema of one API version in the definition at `path`, without unknown fields."""
    definition = yaml.load(path.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    group, version = api_version.split("/")
    assert definition["spec"]["group"] == group
    (matching,) = [entry for entry in definition["spec"]["versions"] if entry["name"] == version]
    schema = _closed(matching["schema"]["openAPIV3Schema"])
    # Defined by the API server: a CustomResourceDefinition only says that it is an object.
    schema["properties"]["metadata"] = {
        "type": "object",
        "required": ["name"],
        "properties": {name: {} for name in ("name", "namespace", "labels", "annotations")},
        "additionalProperties": False,
    }
    return schema


def _closed(schema: Any) -> Any:
    """Return `schema` with objects closed to other fields, which the API server would drop."""
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    result = {name: _closed(value) for name, value in schema.items()}
    if schema.get("x-kubernetes-int-or-string"):
        result.pop("type", None)
    open_object = schema.get("x-kubernetes-preserve-unknown-fields")
    if schema.get("type") == "object" and "properties" in schema and not open_object:
        result.setdefault("additionalProperties", False)
    return result
