"""The roles that the guide prints: what Ray calls on AWS, each with its own node's profile."""

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
    """Of the head's policy and of the workers'."""
    blocks = re.findall(r"```json\n(.*?)```", GUIDE, re.S)
    policies = [json.loads(block) for block in blocks if '"Statement"' in block]
    head, worker = (policy["Statement"] for policy in policies)
    return head, worker


def actions(policy: list[dict[str, Any]]) -> set[str]:
    found: set[str] = set()
    for statement in policy:
        action = statement["Action"]
        found |= {action} if isinstance(action, str) else set(action)
    return found


def profile(kind: str) -> str:
    node = load("aws.yaml")["available_node_types"][kind]["node_config"]
    return str(node["IamInstanceProfile"]["Name"])


def calls_of_ray() -> set[str]:
    """The EC2 operations of Ray's node provider, without those for stopped nodes: none is kept."""
    provider = Path(ray.__file__).parent / "autoscaler" / "_private" / "aws" / "node_provider.py"
    names = set(re.findall(r"ec2\.meta\.client\.(\w+)", provider.read_text()))
    called = {"".join(part.title() for part in name.split("_")) for name in names}
    return called - {"StartInstances", "StopInstances"} | {"RunInstances", "DescribeInstances"}


def test_the_head_may_start_the_workers_with_their_profile() -> None:
    assert (profile("head"), profile("cpu"), profile("gpu")) == (
        "restyle-head",
        "restyle-worker",
        "restyle-worker",
    ), "the role that Ray makes for a head by itself may pass no role"
    (passing,) = [each for each in statements()[0] if each["Action"] == "iam:PassRole"]
    assert passing["Resource"].endswith(f":role/{profile('cpu')}")


def test_the_head_may_do_what_ray_calls_and_nothing_else_in_ec2() -> None:
    model = ServiceModel(Loader().load_service_model("ec2", "service-2"))
    granted = {name.split(":")[1] for name in actions(statements()[0]) if name.startswith("ec2:")}
    assert granted <= set(model.operation_names)
    assert granted == calls_of_ray()
    assert load("aws.yaml")["provider"]["cache_stopped_nodes"] is False


def test_what_ends_nodes_ends_those_of_this_cluster() -> None:
    (ending,) = [each for each in statements()[0] if each["Action"] == "ec2:TerminateInstances"]
    (tags,) = ending["Condition"].values()
    assert tags == {"ec2:ResourceTag/ray-cluster-name": load("aws.yaml")["cluster_name"]}


def test_both_may_use_the_bucket_and_a_worker_nothing_else() -> None:
    head, worker = statements()
    assert all(action.startswith("s3:") for action in actions(worker))
    assert [statement for statement in worker if statement not in head] == []
    bucket = load("run.yaml")["output"].split("/")[2]
    arns = {statement["Resource"] for statement in worker}
    assert arns == {f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"}


def test_the_guide_makes_a_profile_for_each_role_that_the_nodes_have() -> None:
    (made,) = re.findall(r"for role in (.*); do", GUIDE)
    assert set(made.split()) == {profile(kind) for kind in ("head", "cpu", "gpu")}
