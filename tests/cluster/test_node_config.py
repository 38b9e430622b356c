"""Content of `node_config`, which Ray passes to the provider unchecked."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
from botocore.loaders import Loader
from botocore.model import ServiceModel, Shape
from botocore.validate import ParamValidator

from tests.cluster.configurations import FOLDER, load

# Fields of the Compute Engine API's Instance (v1) that a node may need here.
INSTANCE: dict[str, Any] = {
    "machineType": str,
    "disks": [
        {
            "boot": bool,
            "autoDelete": bool,
            "type": {"PERSISTENT", "SCRATCH"},
            "initializeParams": {"diskSizeGb": int, "diskType": str, "sourceImage": str},
        }
    ],
    "scheduling": {
        "provisioningModel": {"SPOT", "STANDARD"},
        "instanceTerminationAction": {"DELETE", "STOP"},
        "onHostMaintenance": {"MIGRATE", "TERMINATE"},
        "automaticRestart": bool,
    },
    "guestAccelerators": [{"acceleratorType": str, "acceleratorCount": int}],
    "serviceAccounts": [{"email": str, "scopes": [str]}],
    "metadata": {"items": [{"key": str, "value": str}]},
    "networkInterfaces": [{"network": str, "subnetwork": str}],
    "labels": {},
}


@cache
def run_instances() -> tuple[Shape, frozenset[str]]:
    """Return the parameters of EC2's RunInstances and all instance types, from botocore."""
    model = ServiceModel(Loader().load_service_model("ec2", "service-2"))
    kinds = model.shape_for("InstanceType").enum
    return model.operation_model("RunInstances").input_shape, frozenset(kinds)


def problems_of_ec2(node_config: dict[str, Any]) -> str:
    """Return what EC2 would refuse; '' if nothing."""
    shape, kinds = run_instances()
    # Ray adds the counts itself.
    report = ParamValidator().validate(node_config | {"MinCount": 1, "MaxCount": 1}, shape)
    exists = node_config.get("InstanceType") in kinds
    return report.generate_report() + ("" if exists else "no such InstanceType")


def problems_of_gce(value: Any, allowed: Any, at: str = "") -> list[str]:
    """Return where `value` is not `allowed`: a type, a set, [element] or {field: allowed}."""
    if isinstance(allowed, set):
        return [] if value in allowed else [f"{at}: {value!r}"]
    if isinstance(allowed, type):
        return [] if type(value) is allowed else [f"{at}: {value!r}"]
    if type(value) is not type(allowed):
        return [f"{at}: {value!r}"]
    if isinstance(value, list):
        return [problem for item in value for problem in problems_of_gce(item, allowed[0], at)]
    unknown = [f"{at}.{key}" for key in value if key not in allowed]
    fields = (key for key in value if key in allowed)
    return unknown + [
        problem
        for key in fields
        for problem in problems_of_gce(value[key], allowed[key], f"{at}.{key}")
    ]


def nodes(name: str) -> dict[str, dict[str, Any]]:
    return {kind: node["node_config"] for kind, node in load(name)["available_node_types"].items()}


@pytest.mark.parametrize("kind", ["head", "cpu", "gpu"])
def test_ec2_accepts_every_node(kind: str) -> None:
    assert problems_of_ec2(nodes("aws.yaml")[kind]) == ""


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"InstanceTyp": "c7i.4xlarge"}, "InstanceTyp"),
        ({"InstanceType": "c7i.5xlarge"}, "no such InstanceType"),
        ({"InstanceMarketOptions": {"MarketTyp": "spot"}}, "MarketTyp"),
        ({"BlockDeviceMappings": [{"Ebs": {"VolumeSize": "100"}}]}, "VolumeSize"),
    ],
)
def test_typos_in_an_ec2_node_are_found(wrong: dict[str, Any], named: str) -> None:
    assert named in problems_of_ec2(nodes("aws.yaml")["gpu"] | wrong)


def test_ec2_nodes_share_one_image_placeholder() -> None:
    images = {kind: node.get("ImageId") for kind, node in nodes("aws.yaml").items()}
    assert set(images.values()) == {"ami-YOURS"}, "without it Ray uses an image of 2023"
    guide = (FOLDER / "README.md").read_text()
    assert "aws ssm get-parameter" in guide, "the guide shows how to get the image's id"
    for node in nodes("aws.yaml").values():
        (disk,) = node["BlockDeviceMappings"]
        assert disk["Ebs"]["VolumeSize"] >= 200, "EC2 refuses a disk smaller than the image's"


@pytest.mark.parametrize("kind", ["head", "cpu", "gpu"])
def test_compute_engine_accepts_every_node(kind: str) -> None:
    assert problems_of_gce(nodes("gcp.yaml")[kind], INSTANCE) == []


def test_compute_engine_disks_fit_all_machine_types() -> None:
    zone = load("gcp.yaml")["provider"]["availability_zone"]
    for kind, node in nodes("gcp.yaml").items():
        (disk,) = node["disks"]
        disk_type = disk["initializeParams"].get("diskType", "pd-standard")
        assert disk_type == f"zones/{zone}/diskTypes/pd-balanced", (
            f"{kind}: C3D and G2 support no other"
        )


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"machineTyp": "g2-standard-8"}, ".machineTyp"),
        ({"scheduling": {"provisioningModel": "SPOTS"}}, ".scheduling.provisioningModel: 'SPOTS'"),
        ({"scheduling": [{"preemptible": True}]}, ".scheduling: [{'preemptible': True}]"),
        ({"disks": [{"boot": "yes"}]}, ".disks: 'yes'"),
    ],
)
def test_typos_in_a_compute_engine_node_are_found(wrong: dict[str, Any], named: str) -> None:
    node = copy.deepcopy(nodes("gcp.yaml")["gpu"]) | wrong
    (problem,) = problems_of_gce(node, INSTANCE)
    assert problem.replace(".boot", "") == named
