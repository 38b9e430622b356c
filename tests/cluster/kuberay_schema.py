"""Schemas of `cluster/kuberay/`: a field that a server does not know is dropped or refused late.

Pods are held against Kubernetes' own OpenAPI schema. No package brings KubeRay's: its fields that
are in use stand here, as its API reference (v1.7.1) has them; any other is refused.
"""

from __future__ import annotations

from typing import Any

import kubernetes_validate
from jsonschema import Draft202012Validator

KUBERNETES = "1.33"
TEXT = {"type": "string", "minLength": 1}
COUNT = {"type": "integer", "minimum": 0}
FLAG = {"type": "boolean"}
# DNS label: of names that become those of pods and services.
NAME = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]{0,48}[a-z0-9])?$"}
CPU = {"type": "string", "pattern": r"^\d+(\.\d+|m)?$"}
BYTES = {"type": "string", "pattern": r"^\d+(Ki|Mi|Gi|Ti)?$"}


def fields(required: str = "", **properties: Any) -> dict[str, Any]:
    """An object of these fields alone; `required` are names between blanks."""
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


def items(of: dict[str, Any], at_least: int = 1) -> dict[str, Any]:
    """A list."""
    return {"type": "array", "items": of, "minItems": at_least}


def mapping(of: dict[str, Any]) -> dict[str, Any]:
    """An object of any names."""
    return {"type": "object", "additionalProperties": of}


RESOURCE_LIST = fields("", cpu=CPU, memory=BYTES, **{"nvidia.com/gpu": CPU})
RESOURCES = fields("requests limits", requests=RESOURCE_LIST, limits=RESOURCE_LIST)
CLUSTER_SPEC = fields(
    "rayVersion authOptions headGroupSpec workerGroupSpecs",
    rayVersion=TEXT,
    authOptions=fields("mode", mode={"enum": ["token"]}),
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions=fields(
        "version",
        version={"enum": ["v1", "v2"]},
        upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
        idleTimeoutSeconds=COUNT,
        resources=RESOURCES,
    ),
    headGroupSpec=fields(
        "rayStartParams template",
        serviceType={"enum": ["ClusterIP"]},
        rayStartParams=mapping(TEXT),
        template={"type": "object"},
    ),
    workerGroupSpecs=items(
        fields(
            "groupName minReplicas maxReplicas rayStartParams template",
            groupName=NAME,
            replicas=COUNT,
            minReplicas=COUNT,
            maxReplicas=COUNT,
            idleTimeoutSeconds=COUNT,
            rayStartParams=mapping(TEXT),
            template={"type": "object"},
        )
    ),
)
JOB_SPEC = fields(
    "entrypoint rayClusterSpec",
    entrypoint=TEXT,
    backoffLimit=COUNT,
    shutdownAfterJobFinishes=FLAG,
    ttlSecondsAfterFinished=COUNT,
    rayClusterSpec=CLUSTER_SPEC,
)


def manifest(kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    """The whole object of `kind`."""
    return fields(
        "apiVersion kind metadata spec",
        apiVersion={"const": "ray.io/v1"},
        kind={"const": kind},
        metadata=fields("name", name=NAME, labels=mapping(TEXT)),
        spec=spec,
    )


SCHEMAS = {
    "RayCluster": manifest("RayCluster", CLUSTER_SPEC),
    "RayJob": manifest("RayJob", JOB_SPEC),
}


def pod_templates(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """The templates of the head's pod and of each worker group's."""
    spec = manifest["spec"].get("rayClusterSpec", manifest["spec"])
    return [group["template"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]


def problems(manifest: dict[str, Any]) -> list[str]:
    """What KubeRay or Kubernetes would drop or refuse: of a pod, the first thing alone."""
    errors = list(Draft202012Validator(SCHEMAS[manifest["kind"]]).iter_errors(manifest))
    for template in pod_templates(manifest):
        pod = {"apiVersion": "v1", "kind": "PodTemplate", "template": template}
        try:
            kubernetes_validate.validate(pod, KUBERNETES, strict=True)
        except kubernetes_validate.ValidationError as error:
            errors.append(error)
    return [f"{error.json_path}: {error.message}" for error in errors]
