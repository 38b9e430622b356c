"""Ray cluster of an idle head and two worker nodes, owned by one process.

As a program (`python -m tests.faults.cluster`) it starts the nodes, then answers every line of its
input with its state, after replacing each node that has ended. It ends with its input.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.processes import descendants, kill_tree, named, send, title
from tests.faults.runs import ROOT

WORKERS = 2
START_TRIES = 4
# Both nodes together can run the actors of two jobs at once.
NODE = {"num_cpus": 8, "object_store_memory": 100 << 20}
HEAD = {"num_cpus": 0, "object_store_memory": 100 << 20, "include_dashboard": False}


class ClusterError(Exception):
    """Cluster that did not start."""


@dataclass
class RayCluster:
    """Cluster as its users see it."""

    process: subprocess.Popen[str]
    address: str
    raylets: list[int]  # process ids on the worker nodes

    def renew(self) -> None:
        """Replace worker nodes that have ended."""
        assert self.process.stdin
        self.process.stdin.write("renew\n")
        self.process.stdin.flush()
        self.raylets = self.answer()["raylets"]

    def answer(self) -> dict[str, Any]:
        """Return the program's next line."""
        assert self.process.stdout
        line = next((line for line in self.process.stdout if line.startswith("{")), "")
        if not line:  # Ray prints other lines before
            raise ClusterError("the cluster ended; see its log")
        state: dict[str, Any] = json.loads(line)
        self.address, self.raylets = state["address"], state["raylets"]
        return state

    def workers(self, title: str) -> list[int]:
        """Return the processes on the worker nodes whose title contains `title`."""
        return named(self.raylets, title)


@contextmanager
def running_cluster(folder: Path, environment: Mapping[str, str]) -> Iterator[RayCluster]:
    """Run the cluster with `environment` for all its workers until the block ends."""
    with (folder / "cluster.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.cluster"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        )
    cluster = RayCluster(process, "", [])
    try:
        cluster.answer()
        yield cluster
    finally:
        assert process.stdin
        assert process.stdout
        # A node whose start timed out leaves processes unknown to its cluster.
        started = descendants(process.pid)
        process.stdin.close()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            kill_tree(process.pid)
            process.wait()
        process.stdout.close()
        send([pid for pid in started if "ray" in title(pid)], signal.SIGKILL)


def main() -> None:
    """Start the nodes and answer every line of the input."""
    # Imported before ray, because it sets ray's environment.
    from pipeline.engine import cluster as _environment  # noqa: F401

    import ray.cluster_utils  # isort: skip

    cluster: Any = _start_with_retries(
        lambda: ray.cluster_utils.Cluster(initialize_head=True, head_node_args=HEAD)
    )
    for _ in sys.stdin if _renew_nodes(cluster) else ():
        _renew_nodes(cluster)
    cluster.shutdown()


def _start_with_retries(start: Any) -> Any:
    """Start a node, repeatedly: on a busy machine Ray's own time limits are too short."""
    for tries_left in reversed(range(START_TRIES)):
        try:
            return start()
        except Exception as error:
            if not tries_left:
                raise
            print(f"again, after {error}", file=sys.stderr, flush=True)
    return None


def _raylet(node: Any) -> Any:
    return node.all_processes["raylet"][0].process


def _renew_nodes(cluster: Any) -> bool:
    """Replace the nodes that have ended and print the state."""
    for node in list(cluster.worker_nodes):
        if _raylet(node).poll() is not None:
            node.kill_all_processes(check_alive=False, allow_graceful=False)
            cluster.worker_nodes.remove(node)
    while len(cluster.worker_nodes) < WORKERS:
        _start_with_retries(lambda: cluster.add_node(**NODE))
    raylets = [_raylet(node).pid for node in cluster.worker_nodes]
    print(json.dumps({"address": cluster.address, "raylets": raylets}), flush=True)
    return True


if __name__ == "__main__":
    main()
