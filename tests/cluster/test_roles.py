"""IAM roles in the guide: the calls that Ray makes on AWS, with one profile per kind of node."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import ray
from botocore.loaders import Loader
from botocore.model import ServiceModel

from tests.cluster.configurations import FOLDER, load

GUIDE = (FOLDER / "README.md").read_text()


def statements() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the statements of the head's policy and of the workers' policy."""
    blocks = re.findall(r"```json\n(.*?)```", GUIDE, re.S)
    policies = [json.loads(block) for block in blocks if '"Statement"' in block]
    head, worker = (policy["Statement"] for policy in policies)
    return head, worker


def actions(policy: list[dict[str, Any]]) -> set[str]:
    names: set[str] = set()
    for statement in policy:
        action = statement["Action"]
        names |= {action} if isinstance(action, str) else set(action)
    return names


def profile(kind: str) -> str:
    node = load("aws.yaml")["available_node_types"][kind]["node_config"]
    return str(node["IamInstanceProfile"]["Name"])


def calls_of_ray() -> set[str]:
    """Return the EC2 operations of Ray's node provider, except those for stopped nodes."""
    provider = Path(ray.__file__).parent / "autoscaler" / "_private" / "aws" / "node_provider.py"
    names = set(re.findall(r"ec2\.meta\.client\.(\w+)", provider.read_text()))
    called = {"".join(part.title() for part in name.split("_")) for name in names}
    return called - {"StartInstances", "StopInstances"} | {"RunInstances", "DescribeInstances"}


def test_head_may_pass_the_profile_of_workers() -> None:
    assert (profile("head"), profile("cpu"), profile("gpu")) == (
        "restyle-head",
        "restyle-worker",
        "restyle-worker",
    ), "the role that Ray creates for a head cannot pass a role"
    (passing,) = [each for each in statements()[0] if each["Action"] == "iam:PassRole"]
    assert passing["Resource"].endswith(f":role/{profile('cpu')}")


def test_head_has_exactly_the_ec2_rights_of_ray() -> None:
    model = ServiceModel(Loader().load_service_model("ec2", "service-2"))
    granted = {name.split(":")[1] for name in actions(statements()[0]) if name.startswith("ec2:")}
    assert granted <= set(model.operation_names)
    assert granted == calls_of_ray()
    assert load("aws.yaml")["provider"]["cache_stopped_nodes"] is False


def test_termination_is_limited_to_this_cluster() -> None:
    (ending,) = [each for each in statements()[0] if each["Action"] == "ec2:TerminateInstances"]
    (tags,) = ending["Condition"].values()
    assert tags == {"ec2:ResourceTag/ray-cluster-name": load("aws.yaml")["cluster_name"]}


def test_workers_may_only_use_the_bucket() -> None:
    head, worker = statements()
    assert all(action.startswith("s3:") for action in actions(worker))
    assert [statement for statement in worker if statement not in head] == []
    bucket = load("run.yaml")["output"].split("/")[2]
    arns = {statement["Resource"] for statement in worker}
    assert arns == {f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"}


def test_guide_creates_every_instance_profile() -> None:
    (roles,) = re.findall(r"for role in (.*); do", GUIDE)
    assert set(roles.split()) == {profile(kind) for kind in ("head", "cpu", "gpu")}
