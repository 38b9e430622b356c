"""Workers that Ray ends because the memory of their node runs out: counted, and what to lower.

Ray repeats what they had without end and says of an actor only that it was restarted. Each node's
exporter counts them by the name of the worker (`ray_memory_manager_worker_eviction_total`).
"""

from __future__ import annotations

import http.client
import re
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import ray

LOOK_EVERY_S = 10.0  # as often as Ray exports
_ANSWER_WITHIN_S = 2.0
_LINE = re.compile(r'^ray_memory_manager_worker_eviction_total\{.*?Name="([^"]*)".*\} (\S+)$')
# What Ray calls the workers of each stage, the benchmark's too.
_STAGES = {"read": "FlatMap(Read)", "align": "Align", "invert": "Invert", "write": "Map(Write)"}
_WORKERS = {"read": "a reader", "align": "an aligner", "invert": "an inverter", "write": "a writer"}


class Sizes(Protocol):
    """What of a job's config bounds the memory of its workers."""

    batch_size: int | None
    max_pixels: int


def parse_kills(text: str) -> Counter[str]:
    """Return how many workers of each stage were ended, from the text of a node's exporter."""
    found: Counter[str] = Counter()
    for line in text.splitlines():
        if match := _LINE.match(line):
            for stage, name in _STAGES.items():
                if name in match[1]:
                    found[stage] += int(float(match[2]))
    return found


def fetch_kills(address: str, port: int) -> Counter[str] | None:
    """Return the counts of a node; None where its exporter does not answer."""
    connection = http.client.HTTPConnection(address, port, timeout=_ANSWER_WITHIN_S)
    try:
        connection.request("GET", "/metrics")
        return parse_kills(connection.getresponse().read().decode(errors="replace"))
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def advice(stage: str, workers: Mapping[str, int], sizes: Sizes, batch: int) -> str:
    """Return the flag to lower and its next value, for a stage whose worker was ended.

    `workers` are the actors that each stage has, `batch` the default of `--batch-size`. Readers and
    writers are small: what takes the memory beside them is the largest pool.
    """
    if stage not in ("align", "invert"):
        stage = max(("invert", "align"), key=lambda name: workers.get(name, 0))
    flag = {"align": "--align-workers", "invert": "--inverters"}[stage]
    if (count := workers.get(stage, 0)) > 1:
        return f"lower {flag} to {count // 2} (it is at {count})"
    if stage == "align":
        return f"lower --max-pixels to {sizes.max_pixels // 2} (it is at {sizes.max_pixels})"
    size = sizes.batch_size or batch
    if size > 1:
        return f"lower --batch-size to {size // 2} (it is at {size})"
    return "take nodes with more memory"


def _alive_nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]] if ray.is_initialized() else []


class MemoryKills:
    """Counts the workers of a run that were ended so; looks around in a thread of its own."""

    def __init__(
        self,
        advise: Callable[[str], str],  # takes a stage
        notice: Callable[[str], None],  # takes a line for the user
    ) -> None:
        self._advise, self._notice = advise, notice
        self._at_first: set[str] = set()  # ids of the nodes that were there when the run began
        self._before: dict[str, Counter[str]] = {}  # node id -> its counts then
        self.by_node: dict[str, Counter[str]] = {}  # address -> ended since, by stage
        self._said: set[str] = set()
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._follow, name="memory", daemon=True)

    def start(self) -> None:
        """Note what was counted before this run, and look around from here on."""
        self._at_first = {node["NodeID"] for node in _alive_nodes()}
        self._look()
        self._thread.start()

    def stop(self) -> list[str]:
        """Look around no more; return what is to be told of each node."""
        self._ended.set()
        self._thread.join(_ANSWER_WITHIN_S)
        return [self.explain(address) for address in sorted(self.by_node)]

    def _follow(self) -> None:
        while not self._ended.wait(LOOK_EVERY_S):
            self._look()

    def _look(self) -> None:
        with self._lock:
            for node in _alive_nodes():
                self._look_at(node)

    def _look_at(self, node: Mapping[str, Any]) -> None:
        address = str(node["NodeManagerAddress"])
        counts = fetch_kills(address, int(node["MetricsExportPort"]))
        if counts is None:
            return
        # A node that comes later begins with none.
        at_first = node["NodeID"] in self._at_first
        before = self._before.setdefault(node["NodeID"], counts if at_first else Counter())
        if since := counts - before:
            self.by_node[address] = since
            if address not in self._said:
                self._said.add(address)
                self._notice(self.explain(address))

    def explain(self, address: str) -> str:
        """Return how many workers of which stages were ended on a node, and what to lower."""
        counts = self.by_node.get(address)
        if not counts:
            return ""
        listed = ", ".join(f"{_WORKERS[stage]} {count} times" for stage, count in counts.items())
        stage = max(counts, key=lambda name: (name in ("align", "invert"), counts[name]))
        return f"node {address} ran out of memory, and Ray ended {listed}: {self._advise(stage)}"

    def explain_now(self, address: str) -> str:
        """Look around first, for a failure that is to be told."""
        self._look()
        return self.explain(address)
