"""How far a table is, from what lies in storage alone: usable from anywhere while a job runs.

Costs a listing of the manifests and of the latents, the index, what is not in it of manifests and
of the footers of open parts (two thousand each at most), and the accounts of the last runs.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from typing import Any

from pipeline.errors import PipelineError, printable
from pipeline.storage import (
    FILES_PER_SHARD,
    ReadOptions,
    Shard,
    Store,
    canonical_uri,
    list_shards,
)
from pipeline.table.audit import Audit
from pipeline.table.part_index import count_open_parts
from pipeline.table.parts import COUNTS, LATENTS, parse_part_name
from pipeline.table.runs import latest_runs, listed_left_out
from pipeline.table.shard_index import indexed_records
from pipeline.table.shard_records import ShardRecord, manifest_name, read_shard_record
from pipeline.table.spec import TableSpec, read_spec
from pipeline.table.stats import Counts

_THREADS = 16
# The index lacks fewer than that, but for a table that many short runs made.
_READ_MANIFESTS = 2000
_DRAWN = 16  # lines of the index for each number: a status is asked for often
_RATE_OVER_S = 600.0
_PARTS_MISSED = 10  # so many that should have come, and did not, are the silence of a run
_RUNS = 3


@dataclass
class Status:
    """How far a table is; what is not known is None. Samples and faces are all that is stored."""

    table: str
    shards_committed: int = 0
    shards_open: int = 0  # with parts, but not committed
    shards_total: int | None = None
    shards_left: int | None = None  # of the input, not committed
    bytes_committed: int = 0
    bytes_total: int | None = None
    bytes_left: int | None = None  # of those shards
    samples: int = 0  # of committed shards and of the parts of others, as the next two
    faces: int = 0
    rejects: int = 0
    samples_open: int = 0  # of these, those of shards that are not committed
    faces_open: int = 0
    rejects_open: int = 0
    left_out: dict[str, int] = field(default_factory=dict)  # by the listing, and by these' readers
    empty_shards: int = 0  # of these, without a sample
    exact: bool = True  # or else what is above is of some thousand shards or parts, scaled up
    parts: int = 0
    parts_open: int = 0  # of shards that are not committed
    parts_per_second: float | None = None  # of late, of one run
    samples_per_second: float | None = None
    seconds_since_last_part: float | None = None  # by the clocks of the storage and of this machine
    at_work: bool = False  # whether a run seems to be: it has not ended, and was heard of late
    seconds_left: float | None = None  # if one is
    runs: list[dict[str, Any]] = field(default_factory=list)  # the last ones, the latest first

    @property
    def complete(self) -> bool:
        """Whether every shard of the input is committed, and the last run says nothing else.

        A run that has not ended and has not listed its input to the end may have more to do.
        """
        latest = self.runs[0] if self.runs else None
        told = latest is None or latest["exit_code"] == 0 or _is_listed(latest)
        failed = latest is not None and latest["exit_code"] not in (0, None)
        return told and not failed and not self.shards_open and self.shards_left == 0

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "complete": self.complete}


def table_status(uri: str, *, list_input: bool = False) -> Status:
    """How far the table at `uri` is; `TableError` if there is none.

    What there is in all, and what of it is left, stands in the account of the last run that has
    listed its input; with `list_input`, or where there is none, the input is listed, if it can be
    reached from here and is the table's as a whole.
    """
    store = Store(uri)
    spec = read_spec(store)
    status = Status(table=store.root, runs=list(latest_runs(store, _RUNS)))
    commits = _Commits.of(store)
    parts_committed = _count_committed(store, status, commits)
    _count_parts(store, status, commits)
    if list_input or not _find_told(status, commits):
        _find_listed(status, commits, spec)
    _estimate(status, parts_committed)
    return status


@dataclass
class _Commits:
    """The shards that have a manifest, and what is known of them."""

    etags: dict[str, str]
    times: dict[str, float]  # by the storage's clock
    states: dict[str, tuple[int, int]]  # size and hash of the etag; of those that were read

    @classmethod
    def of(cls, store: Store) -> _Commits:
        found = cls({}, {}, {})
        for name, info in store.infos("_shards/"):
            shard = name.removeprefix("_shards/").removesuffix(".json")
            if name == manifest_name(shard):
                found.etags[shard], found.times[shard] = info.etag, info.modified
        return found

    def since(self, moment: float) -> tuple[int, int]:
        """Shards that were committed since then, and their bytes: scaled up if not all are read."""
        late = [shard for shard, time_ in self.times.items() if time_ >= moment]
        sizes = [self.states[shard][0] for shard in late if shard in self.states]
        return len(late), round(sum(sizes) * len(late) / max(1, len(sizes)))

    def has(self, shard: Shard) -> bool:
        """Whether the shard is committed, as it now stands in the input if that is known."""
        state = self.states.get(shard.shard_id)
        now = shard.size, hash(shard.etag)
        return shard.shard_id in self.etags and state in (None, now)


def _is_listed(run: dict[str, Any]) -> bool:
    """Whether the run has listed its input to the end."""
    return bool((run["found"] or {}).get("complete"))


def _begin(run: dict[str, Any]) -> float | None:
    """When a run began, by the name of its account; None if that is not of our making."""
    try:
        return datetime.strptime(run["run"][:16], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None


def _count_committed(store: Store, status: Status, commits: _Commits) -> int:
    """Fill in the counts of committed shards; how many parts they have."""
    total = Counts(left_out=listed_left_out(store))
    for record in _records(store, commits):
        commits.states[record.shard] = record.size, hash(record.etag)
        total += record.counts
    scale = len(commits.etags) / max(1, len(commits.states))
    scaled = total.scaled(scale)
    status.exact = len(commits.states) == len(commits.etags)
    status.left_out = total.left_out.ordered()
    status.empty_shards = total.empty_shards
    status.shards_committed = len(commits.etags)
    status.bytes_committed = scaled.bytes
    for name in COUNTS:
        setattr(status, name, getattr(scaled, name))
    return scaled.parts


def _records(store: Store, commits: _Commits) -> Iterator[ShardRecord]:
    """Yield what the index says, and some of the manifests that are not in it."""
    audit = Audit(sums=True, each=_DRAWN)
    records = list(audit.sample(indexed_records(store, commits.etags)))
    if not audit.finds_mismatch(store):
        yield from records
    unread = (shard for shard in commits.etags if shard not in commits.states)
    with ThreadPoolExecutor(_THREADS) as pool:
        read = partial(read_shard_record, store)
        yield from pool.map(read, islice(unread, _READ_MANIFESTS))


def _count_parts(store: Store, status: Status, commits: _Commits) -> None:
    """Count the parts that are there, what those of open shards hold, and how many came of late."""
    times = []
    still_open, etags = set(), {}
    for name, info in store.infos(f"{LATENTS}/"):
        parsed = parse_part_name(name)
        if parsed:
            times.append(info.modified)
            if parsed[0] not in commits.etags:
                etags[name] = info.etag
                still_open.add(parsed[0])
    status.parts, status.parts_open, status.shards_open = len(times), len(etags), len(still_open)
    counts, exact = count_open_parts(store, etags)
    status.exact = status.exact and exact
    for name in COUNTS:
        setattr(status, f"{name}_open", getattr(counts, name))
        setattr(status, name, getattr(status, name) + getattr(counts, name))
    latest = max(times, default=0.0)
    if latest:
        status.seconds_since_last_part = max(0.0, round(time.time() - latest, 1))
        status.parts_per_second = _rate(times, _begin(status.runs[0]) if status.runs else None)


def _rate(times: Sequence[float], begin: float | None) -> float | None:
    """Parts a second in the last minutes of the run that began then, or before it has two.

    Between two runs nothing comes, for a time that is no measure of either.
    """
    ours = [one for one in times if begin is None or one >= begin]
    if len(ours) < 2:
        ours = [one for one in times if begin is not None and one < begin]
    latest = max(ours, default=0.0)
    late = [one for one in ours if one >= latest - _RATE_OVER_S]
    first = min(late, default=latest)
    return (len(late) - 1) / (latest - first) if latest > first else None


def _is_at_work(status: Status) -> bool:
    """Whether the latest run has not ended, and said something or wrote a part of late."""
    latest = status.runs[0] if status.runs else {"exit_code": None, "updated": None}
    if latest["exit_code"] is not None:
        return False
    heard = (status.seconds_since_last_part, seconds_since(latest["updated"]))
    silence = min((one for one in heard if one is not None), default=None)
    rate = status.parts_per_second
    longest = max(_RATE_OVER_S, _PARTS_MISSED / rate if rate else 0.0)
    return silence is not None and silence <= longest


def _find_told(status: Status, commits: _Commits) -> bool:
    """Fill in what there is in all and what is left by what runs say, if any tells it.

    Counts alone do not tell what is left: shards that are gone from the input stay in the table. So
    what the latest run has found to do is compared with what was committed since it began, by the
    clock of the storage.
    """
    told = next((run["found"] for run in status.runs if _is_listed(run)), None)
    if told is None:
        return False
    latest = status.runs[0]["found"] or dict.fromkeys(told, 0)
    if latest["shards"] + latest["done_shards"] > told["shards"] + told["done_shards"]:
        return False  # what an earlier run has listed is not the input any more
    status.shards_total = told["shards"] + told["done_shards"]
    status.bytes_total = told["bytes"] + told["done_bytes"]
    shards_left = status.shards_total - status.shards_committed
    bytes_left = status.bytes_total - status.bytes_committed
    if status.runs[0]["exit_code"] != 0:
        begin = _begin(status.runs[0])
        shards, size = (0, 0) if begin is None else commits.since(begin)
        shards_left = max(shards_left, latest["shards"] - shards)
        bytes_left = max(bytes_left, latest["bytes"] - size)
    status.shards_left, status.bytes_left = max(0, shards_left), max(0, bytes_left)
    return True


def _find_listed(status: Status, commits: _Commits, spec: TableSpec) -> None:
    """Fill in what there is in all and what is left by listing the input.

    Of a part of it, which a limit or the codes of an import choose, a listing does not tell: what
    runs say has to do.
    """
    layout = spec.layout
    if layout.get("limit") is not None or "input" not in spec.config:
        _find_told(status, commits)
        return
    length = int(layout.get("files_per_shard") or FILES_PER_SHARD)
    options = ReadOptions(sniff=bool(layout.get("sniff", False)))
    with suppress(PipelineError):  # not reachable from here
        shards = list_shards(_input_of(spec), files_per_shard=length, options=options)
        _compare(status, commits, shards)


def _compare(status: Status, commits: _Commits, shards: Iterable[Shard]) -> None:
    counts = dict.fromkeys(("shards_total", "bytes_total", "shards_left", "bytes_left"), 0)
    for shard in shards:
        counts["shards_total"] += 1
        counts["bytes_total"] += shard.size
        if not commits.has(shard):
            counts["shards_left"] += 1
            counts["bytes_left"] += shard.size
    for name, count in counts.items():
        setattr(status, name, count)


def _input_of(spec: TableSpec) -> str:
    """Where the input is: a relative path is that of where the job ran."""
    given, place = str(spec.config["input"]), spec.layout.get("input")
    return given if place in (None, printable(canonical_uri(given))) else str(place)


def _estimate(status: Status, parts_committed: int) -> None:
    """Samples a second, and the time left: the parts in the bytes that are left, by their rate.

    Nothing is on its way to an end where no run is at work.
    """
    status.at_work = _is_at_work(status)
    if status.complete:
        status.seconds_left = 0.0
    parts = parts_committed + status.parts_open
    if not parts or not status.parts_per_second:
        return
    status.samples_per_second = status.samples / parts * status.parts_per_second
    if status.complete or not status.at_work or not (status.bytes_left and status.bytes_committed):
        return
    if not parts_committed:
        return
    left = parts_committed * status.bytes_left / status.bytes_committed - status.parts_open
    status.seconds_left = max(0.0, round(left / status.parts_per_second, 1))


def seconds_since(moment: str | None) -> float | None:
    """Since an ISO 8601 time, by this machine's clock."""
    if not moment:
        return None
    then = datetime.fromisoformat(moment)
    return max(0.0, (datetime.now(then.tzinfo) - then).total_seconds())
