"""JSON Schemas of the KubeRay and pod fields that `cluster/kuberay/` uses; any other is refused.

Written from KubeRay's API reference (v1.7.1) and Kubernetes' (v1.33): both servers drop a field
that they do not know, or refuse the object, long after it was written.
"""

from __future__ import annotations

from typing import Any

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
CONTAINER = fields(
    "name image resources securityContext",
    name=NAME,
    image=TEXT,
    resources=RESOURCES,
    securityContext=fields(
        "allowPrivilegeEscalation capabilities",
        allowPrivilegeEscalation={"const": False},
        capabilities=fields("drop", drop={"const": ["ALL"]}),
    ),
    volumeMounts=items(fields("name mountPath", name=NAME, mountPath=TEXT, readOnly=FLAG)),
)
POD = fields(
    "containers securityContext serviceAccountName",
    serviceAccountName=NAME,
    securityContext=fields(
        "runAsNonRoot runAsUser seccompProfile",
        runAsNonRoot={"const": True},
        runAsUser={"type": "integer", "minimum": 1},
        runAsGroup={"type": "integer", "minimum": 1},
        fsGroup={"type": "integer", "minimum": 1},
        seccompProfile=fields("type", type={"const": "RuntimeDefault"}),
    ),
    nodeSelector=mapping(TEXT),
    tolerations=items(
        fields(
            "key operator",
            key=TEXT,
            operator={"enum": ["Exists", "Equal"]},
            value=TEXT,
            effect={"enum": ["NoSchedule", "PreferNoSchedule", "NoExecute"]},
        )
    ),
    containers=items(CONTAINER),
    volumes=items(
        fields(
            "name emptyDir",
            name=NAME,
            emptyDir=fields("", medium={"enum": ["", "Memory"]}, sizeLimit=BYTES),
        )
    ),
)
TEMPLATE = fields("spec", metadata=fields("", labels=mapping(TEXT)), spec=POD)
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
        template=TEMPLATE,
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
            template=TEMPLATE,
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
