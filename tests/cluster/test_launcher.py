"""Files for `ray up`: Ray's own checks, and those that it does not make."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
from ray.autoscaler._private.util import prepare_config, validate_config

from pipeline.engine.capacity import Pools, reserved_cpus
from pipeline.engine.stages import Invert
from pipeline.engine.stages.read import MAX_PART_BYTES
from tests.cluster.configurations import CLOUDS, FOLDER, LAUNCHED, load

# vCPUs, memory in GiB, GPUs, from the providers' documentation.
MACHINES = {
    "m7i.xlarge": (4, 16, 0),
    "c7i.4xlarge": (16, 32, 0),
    "g6e.2xlarge": (8, 64, 1),
    "n2-standard-4": (4, 16, 0),
    "c3d-highcpu-16": (16, 32, 0),
    "g2-standard-8": (8, 32, 1),
}


def node_types(name: str) -> list[tuple[str, dict[str, Any]]]:
    return list(load(name)["available_node_types"].items())


def machine(node: dict[str, Any]) -> tuple[int, int, int]:
    config = node["node_config"]
    return MACHINES[config.get("InstanceType") or config["machineType"]]


def shm_bytes(name: str) -> int:
    match = re.search(r"--shm-size=(\d+)g", " ".join(load(name)["docker"]["run_options"]))
    assert match
    return int(match[1]) << 30


def is_spot(node_config: dict[str, Any]) -> bool:
    market = node_config.get("InstanceMarketOptions", {}).get("MarketType")
    return "spot" in (
        market,
        node_config.get("scheduling", {}).get("provisioningModel", "").lower(),
    )


@pytest.mark.parametrize("name", LAUNCHED)
def test_ray_accepts_the_configuration(name: str) -> None:
    validate_config(prepare_config(copy.deepcopy(load(name))))


@pytest.mark.parametrize("name", LAUNCHED)
def test_nothing_is_installed_on_the_nodes(name: str) -> None:
    config = load(name)
    commands = ("setup_commands", "head_setup_commands", "worker_setup_commands")
    assert [config[key] for key in commands] == [[], [], []], (
        "Ray's default commands install another Ray"
    )
    assert "restyle-pipeline" in config["docker"]["image"]


@pytest.mark.parametrize("name", LAUNCHED)
def test_the_dashboard_listens_on_loopback(name: str) -> None:
    (start,) = [line for line in load(name)["head_start_ray_commands"] if "--head" in line]
    assert "--dashboard-host=127.0.0.1" in start


@pytest.mark.parametrize("name", LAUNCHED)
def test_every_node_exports_metrics_at_the_documented_port(name: str) -> None:
    config = load(name)
    commands = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    guide = (FOLDER / "README.md").read_text()
    (port,) = re.findall(r"port (\d+) of every node", guide)
    for command in (line for line in commands if line.startswith("ray start")):
        assert f"--metrics-export-port={port}" in command, "otherwise it changes at each start"


@pytest.mark.parametrize("name", CLOUDS)
def test_workers_are_spot_nodes_and_scale_to_zero(name: str) -> None:
    config = load(name)
    for kind, node in node_types(name):
        is_head = kind == config["head_node_type"]
        assert is_spot(node["node_config"]) != is_head
        assert is_head or node["min_workers"] == 0
    workers = sum(node.get("max_workers", 0) for _, node in node_types(name))
    assert workers <= config["max_workers"], "Ray never exceeds it"


@pytest.mark.parametrize("name", CLOUDS)
def test_nodes_offer_no_more_than_the_machine(name: str) -> None:
    for kind, node in node_types(name):
        cpus, memory, gpus = machine(node)
        offered = node["resources"]
        assert offered["CPU"] == (cpus if kind == "cpu" else 0), (
            f"{kind}: every CPU that is paid for"
        )
        assert offered.get("GPU", 0) == gpus, kind
        store = offered.get("object_store_memory", 0)
        assert store <= 0.4 * memory * 2**30, f"{kind}: the actors need the rest"
        assert store < shm_bytes(name), f"{kind}: the store lives in /dev/shm"


def test_gpu_nodes_of_google_wait_for_the_driver() -> None:
    """Ray calls nvidia-smi only once, when it starts the container."""
    (wait,) = dict(node_types("gcp.yaml"))["gpu"]["initialization_commands"]
    assert "nvidia-smi" in wait


@pytest.mark.parametrize("name", CLOUDS)
def test_actor_pools_fit_on_the_nodes(name: str) -> None:
    nodes = dict(node_types(name))
    head, cpu, gpu = (nodes[kind]["resources"] for kind in ("head", "cpu", "gpu"))
    assert head["CPU"] == 0, "losing the head loses the run"
    assert cpu["CPU"] >= sum(reserved_cpus(on_gpu=True).values()), (
        "all CPU stages on one node at least"
    )
    assert "GPU" not in cpu
    needs = Pools({}, reserved_cpus(on_gpu=True), on_gpu=True).needs(Invert)
    assert gpu["GPU"] >= needs["num_gpus"]
    assert gpu["CPU"] == needs["num_cpus"] == 0, "an aligner would keep a GPU node busy"
    for offered in (cpu, gpu):
        assert offered["object_store_memory"] >= 8 * MAX_PART_BYTES, (
            "parts that wait, enter and leave"
        )


@pytest.mark.parametrize("name", CLOUDS)
def test_idle_gpu_nodes_are_removed_first(name: str) -> None:
    config = load(name)
    assert config["available_node_types"]["gpu"]["idle_timeout_s"] < (
        60 * config["idle_timeout_minutes"]
    )


def test_all_on_premise_machines_are_used() -> None:
    config = load("on_premise.yaml")
    machines = len(config["provider"]["worker_ips"])
    assert (config["min_workers"], config["max_workers"]) == (machines, machines)
