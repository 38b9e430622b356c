"""Count workers that Ray kills when their node runs out of memory, and advise which flag to lower.

Ray repeats their work without limit and reports only that an actor was restarted. The exporter of
each node counts the kills by the name of the worker (`ray_memory_manager_worker_eviction_total`).
"""

from __future__ import annotations

import http.client
import re
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import ray

from pipeline.config import JobConfig
from pipeline.engine.stages import STAGES, Stage

POLL_EVERY_S = 10.0  # the interval at which Ray exports
_ANSWER_WITHIN_S = 2.0
_LINE = re.compile(r'^ray_memory_manager_worker_eviction_total\{.*?Name="([^"]*)".*\} (\S+)$')


def _ray_name(stage: type[Stage]) -> str:
    """Return the part of a Ray worker's name that identifies the stage, in a benchmark too."""
    return f"{stage.__name__})" if stage.resources.is_pool else f"FlatMap({stage.__name__})"


def _worker(stage: str) -> str:
    """Return what a worker of a stage is called, with its article."""
    (name,) = (each.resources.worker for each in STAGES if each.name == stage)
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def parse_kills(text: str) -> Counter[str]:
    """Return how many workers of each stage were killed, from the text of a node's exporter."""
    kills: Counter[str] = Counter()
    for line in text.splitlines():
        if match := _LINE.match(line):
            for stage in STAGES:
                if _ray_name(stage) in match[1]:
                    kills[stage.name] += int(float(match[2]))
    return kills


def fetch_kills(address: str, port: int) -> Counter[str] | None:
    """Return the counts of a node; None if its exporter does not answer."""
    connection = http.client.HTTPConnection(address, port, timeout=_ANSWER_WITHIN_S)
    try:
        connection.request("GET", "/metrics")
        return parse_kills(connection.getresponse().read().decode(errors="replace"))
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def advice(stage: str, workers: Mapping[str, int], config: JobConfig, batch: int) -> str:
    """Return the flag to lower and its next value, for a stage whose worker was killed.

    `workers` are the actors of each stage, `batch` the default of `--batch-size`. Readers and
    writers are small: for them the larger pool is the one to shrink.
    """
    if stage not in ("align", "invert"):
        stage = max(("invert", "align"), key=lambda name: workers.get(name, 0))
    flag = {"align": "--align-workers", "invert": "--inverters"}[stage]
    if (count := workers.get(stage, 0)) > 1:
        return f"lower {flag} to {count // 2} (it is at {count})"
    if stage == "align":
        return f"lower --max-pixels to {config.max_pixels // 2} (it is at {config.max_pixels})"
    size = config.batch_size or batch
    if size > 1:
        return f"lower --batch-size to {size // 2} (it is at {size})"
    return "take nodes with more memory"


def _alive_nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]] if ray.is_initialized() else []


class MemoryKills:
    """Counts the killed workers of a run; a thread polls the nodes' exporters."""

    def __init__(
        self,
        advise: Callable[[str], str],  # takes a stage
        notice: Callable[[str], None],  # takes a line for the user
    ) -> None:
        self._advise, self._notice = advise, notice
        self._first_nodes: set[str] = set()  # ids of the nodes at the start of the run
        self._before: dict[str, Counter[str]] = {}  # node id -> its counts at the start
        self.by_node: dict[str, Counter[str]] = {}  # address -> kills since, by stage
        self._reported: set[str] = set()  # addresses
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._follow, name="memory", daemon=True)

    def start(self) -> None:
        """Record the counts from before this run, and start to poll."""
        self._first_nodes = {node["NodeID"] for node in _alive_nodes()}
        self._poll()
        self._thread.start()

    def stop(self) -> list[str]:
        """Stop polling; return one message per node with kills."""
        self._ended.set()
        self._thread.join(_ANSWER_WITHIN_S)
        return [self.explain(address) for address in sorted(self.by_node)]

    def _follow(self) -> None:
        while not self._ended.wait(POLL_EVERY_S):
            self._poll()

    def _poll(self) -> None:
        with self._lock:
            for node in _alive_nodes():
                self._poll_node(node)

    def _poll_node(self, node: Mapping[str, Any]) -> None:
        address = str(node["NodeManagerAddress"])
        counts = fetch_kills(address, int(node["MetricsExportPort"]))
        if counts is None:
            return
        # A node that joins later starts at zero.
        is_first = node["NodeID"] in self._first_nodes
        before = self._before.setdefault(node["NodeID"], counts if is_first else Counter())
        if since := counts - before:
            self.by_node[address] = since
            if address not in self._reported:
                self._reported.add(address)
                self._notice(self.explain(address))

    def explain(self, address: str) -> str:
        """Return how many workers of each stage were killed on a node, and the flag to lower."""
        counts = self.by_node.get(address)
        if not counts:
            return ""
        listed = ", ".join(f"{_worker(stage)} {count} times" for stage, count in counts.items())
        stage = max(counts, key=lambda name: (name in ("align", "invert"), counts[name]))
        return f"node {address} ran out of memory, and Ray ended {listed}: {self._advise(stage)}"

    def explain_now(self, address: str) -> str:
        """Poll first, then explain; for a failure that is about to be reported."""
        self._poll()
        return self.explain(address)
