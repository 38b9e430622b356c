"""How far a table is, from what lies in storage alone: usable from anywhere while a job runs.

Costs a listing of the manifests and of the latents, the index, the manifests that are not in it
(a thousand at most), and the accounts of the last runs.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import datetime
from itertools import islice
from typing import Any

from pipeline.errors import PipelineError
from pipeline.storage import Store, list_shards
from pipeline.table.description import Description, read_description
from pipeline.table.index import ShardEntry, read_entries
from pipeline.table.manifests import manifest_etags, read_manifest
from pipeline.table.parts import LATENTS, parse_part_name
from pipeline.table.runs import read_account

_THREADS = 16
# The index lacks fewer than that, but for a table that many short runs made.
_READ_MANIFESTS = 2000
_RATE_OVER_S = 600.0
_RUNS = 3


@dataclass
class Status:
    """How far a table is; what is not known is None. Samples and faces are of committed shards."""

    table: str
    shards_committed: int = 0
    shards_open: int = 0  # with parts, but not committed
    shards_total: int | None = None
    bytes_committed: int = 0
    bytes_total: int | None = None
    samples: int = 0
    faces: int = 0
    rejects: int = 0
    exact: bool = True  # or else the four above are of some thousand shards, scaled up
    parts: int = 0
    parts_open: int = 0  # of shards that are not committed
    parts_per_second: float | None = None  # of late
    samples_per_second: float | None = None
    seconds_since_last_part: float | None = None  # by the clocks of the storage and of this machine
    seconds_left: float | None = None
    runs: list[dict[str, Any]] = field(default_factory=list)  # the last ones, the latest first

    @property
    def complete(self) -> bool:
        """Whether every shard of the input is committed, and the last run says nothing else.

        Counts alone do not tell: shards that are gone from the input stay in the table.
        """
        failed = bool(self.runs) and self.runs[0]["exit_code"] not in (0, None)
        return not failed and not self.shards_open and self.shards_left == 0

    @property
    def shards_left(self) -> int | None:
        """Shards of the input that are not committed, as far as counts tell."""
        if self.shards_total is None:
            return None
        return max(self.shards_open, self.shards_total - self.shards_committed)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "complete": self.complete}


def table_status(uri: str, *, list_input: bool = False) -> Status:
    """How far the table at `uri` is; `TableError` if there is none.

    What there is in all stands in the account of the last run that has listed its input; with
    `list_input`, or where there is none, the input is listed, if it can be reached from here.
    """
    store = Store(uri)
    description = read_description(store)
    status = Status(table=store.root, runs=list(_last_runs(store)))
    etags = dict(manifest_etags(store))
    parts_committed = _count_committed(store, status, etags)
    _count_parts(store, status, etags)
    _find_totals(status, description, list_input)
    _estimate(status, parts_committed)
    return status


def _last_runs(store: Store) -> Iterator[dict[str, Any]]:
    wanted = ("started", "updated", "exit_code", "samples", "faces", "seconds", "found", "job")
    for name in list(reversed(store.names("_runs/")))[:_RUNS]:
        account = read_account(store, name)
        facts: dict[str, Any] = {one: account.get(one) for one in wanted}
        facts["run"] = name.removeprefix("_runs/").removesuffix(".json")
        yield facts | {"errors": len(account.get("errors") or ())}


def _count_committed(store: Store, status: Status, etags: Mapping[str, str]) -> int:
    """Fill in the counts of committed shards; how many parts they have."""
    counts = dict.fromkeys(("size", "samples", "faces", "rejects", "parts"), 0)
    counted = set()
    for entry in read_entries(store, etags):
        counted.add(entry.shard)
        _add(counts, entry)
    unread = (shard for shard in etags if shard not in counted)
    with ThreadPoolExecutor(_THREADS) as pool:
        for entry in pool.map(lambda shard: _entry(store, shard), islice(unread, _READ_MANIFESTS)):
            counted.add(entry.shard)
            _add(counts, entry)
    scale = len(etags) / max(1, len(counted))
    status.exact = len(counted) == len(etags)
    status.shards_committed = len(etags)
    status.bytes_committed = round(counts["size"] * scale)
    for name in ("samples", "faces", "rejects"):
        setattr(status, name, round(counts[name] * scale))
    return round(counts["parts"] * scale)


def _entry(store: Store, shard: str) -> ShardEntry:
    return ShardEntry.of(read_manifest(store, shard), "")


def _add(counts: dict[str, int], entry: ShardEntry) -> None:
    for name in counts:
        counts[name] += getattr(entry, name)


def _count_parts(store: Store, status: Status, etags: Mapping[str, str]) -> None:
    """Count the parts that are there, and how many came of late."""
    times = []
    still_open = set()
    for name, info in store.infos(f"{LATENTS}/"):
        parsed = parse_part_name(name)
        if parsed:
            times.append(info.modified)
            if parsed[0] not in etags:
                status.parts_open += 1
                still_open.add(parsed[0])
    status.parts, status.shards_open = len(times), len(still_open)
    latest = max(times, default=0.0)
    if latest:
        status.seconds_since_last_part = max(0.0, round(time.time() - latest, 1))
        late = [one for one in times if one >= latest - _RATE_OVER_S]
        if latest > min(late):
            status.parts_per_second = (len(late) - 1) / (latest - min(late))


def _find_totals(status: Status, description: Description, list_input: bool) -> None:
    """Fill in what there is in all, if that can be known."""
    accounts: list[dict[str, Any]] = [run["found"] or {} for run in status.runs]
    found = next((account for account in accounts if account.get("complete")), None)
    if found and not list_input:
        status.shards_total = found["shards"] + found["done_shards"]
        status.bytes_total = found["bytes"] + found["done_bytes"]
    elif description.layout.get("limit") is None:
        try:
            shards = list_shards(
                str(description.config["input"]),
                files_per_shard=int(description.layout["files_per_shard"]),
            )
            sizes = [shard.size for shard in shards]
        except (PipelineError, KeyError):
            return  # not reachable from here, or not from an input
        status.shards_total, status.bytes_total = len(sizes), sum(sizes)


def _estimate(status: Status, parts_committed: int) -> None:
    """Samples a second, and the time left: the parts in the bytes that are left, by their rate."""
    if status.complete:
        status.seconds_left = 0.0
    if not parts_committed or not status.parts_per_second:
        return
    status.samples_per_second = status.samples / parts_committed * status.parts_per_second
    if status.bytes_total is None or not status.bytes_committed or status.complete:
        return
    in_all = parts_committed * status.bytes_total / status.bytes_committed
    left = in_all - parts_committed - status.parts_open
    status.seconds_left = max(0.0, round(left / status.parts_per_second, 1))


def seconds_since(moment: str | None) -> float | None:
    """Since an ISO 8601 time, by this machine's clock."""
    if not moment:
        return None
    then = datetime.fromisoformat(moment)
    return max(0.0, (datetime.now(then.tzinfo) - then).total_seconds())
