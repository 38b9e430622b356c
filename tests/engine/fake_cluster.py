"""A cluster that grows and shrinks, on this machine: Ray's autoscaler over nodes of its own."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray

from tests.ports import free_ports

HEAD_ID = "f" * 51 + "00000"
STARTS_WITHIN_S = 180.0
# As in cluster/*.yaml: the head runs only the driver, and GPU nodes offer no CPU.
NODE_TYPES: dict[str, dict[str, Any]] = {
    "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
    "cpu": {"resources": {"CPU": 2}, "node_config": {}, "min_workers": 0, "max_workers": 2},
    "gpu": {
        "resources": {"CPU": 0, "GPU": 1},
        "node_config": {},
        "min_workers": 0,
        "max_workers": 2,
    },
}
# Nothing is to be done on such a node, but the autoscaler reads all of these.
COMMANDS = (
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
)


def _own_ip() -> str:
    """Return the address that Ray gives this machine's nodes."""
    return str(ray.util.get_node_ip_address())


def _config(address: str, idle_minutes: float) -> dict[str, Any]:
    # As an external provider: Ray's own name for it needs a file that its wheel leaves out.
    module = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
    return {
        "cluster_name": "fake",
        "max_workers": 8,
        "idle_timeout_minutes": idle_minutes,
        "upscaling_speed": 100.0,
        "provider": {
            "type": "external",
            "module": module,
            "gcs_address": address,
            "head_node_id": HEAD_ID,
            "launch_multiple": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "available_node_types": NODE_TYPES,
        "head_node_type": "ray.head.default",
        **{name: [] for name in COMMANDS},
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
    }


def _wait_for(head: subprocess.Popen[bytes], log: Path) -> None:
    """Return once the head says that it runs; raises with its words if it does not."""
    deadline = time.monotonic() + STARTS_WITHIN_S
    while "Ray runtime started" not in log.read_text():
        if head.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the head does not start: {log.read_text()[-500:]}")
        time.sleep(1)


def _started_from(folder: str) -> list[int]:
    """Processes that name `folder` in their command line: of this cluster only."""
    result = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with suppress(OSError):
                if folder.encode() in (entry / "cmdline").read_bytes():
                    result.append(int(entry.name))
    return result


def _end(folder: str) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in _started_from(folder):
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        time.sleep(2)


@contextmanager
def fake_cluster(idle_minutes: float = 0.1) -> Iterator[dict[str, str]]:
    """Start the head alone; gives the environment that joins a driver to it.

    The folder's path is short, as the sockets in it may have 107 characters in all.
    """
    with tempfile.TemporaryDirectory(prefix="fc", ignore_cleanup_errors=True) as folder:
        port, client_port = free_ports(2)
        address = f"{_own_ip()}:{port}"
        config = Path(folder) / "cluster.json"
        config.write_text(json.dumps(_config(address, idle_minutes)))
        joined = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
        environment = (
            os.environ
            | joined
            | {
                "RAY_FAKE_CLUSTER": "1",
                "RAY_enable_autoscaler_v2": "1",
                "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
                # As `ray up` and KubeRay have it: by this a job knows that more nodes may come.
                "RAY_NODE_TYPE_NAME": "ray.head.default",
                "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
                "RAY_USAGE_STATS_ENABLED": "0",
                "AUTOSCALER_UPDATE_INTERVAL_S": "1",
                # The nodes share the cores of one machine, and with whatever else runs there.
                "RAY_prestart_worker_first_driver": "0",
            }
        )
        environment.pop("RAY_ADDRESS", None)
        command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block"]
        command += [f"--port={port}", f"--temp-dir={folder}", "--num-cpus=0"]
        command += ["--num-gpus=0", "--include-dashboard=false", "--object-store-memory=300000000"]
        command += [f"--ray-client-server-port={client_port}", f"--autoscaling-config={config}"]
        log = Path(folder) / "head.log"
        with log.open("w") as sink:
            head = subprocess.Popen(command, env=environment, stdout=sink, stderr=sink)
        try:
            _wait_for(head, log)
            yield joined | {"RAY_ADDRESS": address}
        finally:
            head.terminate()
            _end(folder)
            head.wait(30)
