"""Progress of a table, from its storage alone: usable from any machine while a job runs.

Reads a listing of the manifests and one of the latents, the index, manifests and footers of open
parts that are not in the index (at most two thousand each), the records of the last runs, and the
list of forgotten images.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
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
from pipeline.table.forgetting.forgotten import Forgotten
from pipeline.table.part_index import count_open_parts
from pipeline.table.parts import COUNTS, LATENTS, parse_part_name
from pipeline.table.runs import latest_runs, listed_left_out
from pipeline.table.shard_index import indexed_records
from pipeline.table.shard_records import ShardRecord, manifest_name, read_shard_record
from pipeline.table.spec import TableSpec, read_spec
from pipeline.table.stats import Counts

_THREADS = 16
# The index lacks fewer manifests than this, except in a table that many short runs made.
_READ_MANIFESTS = 2000
_DRAWN = 16  # index rows that are checked for each number; few, as a status is read often
_RATE_OVER_S = 600.0
_PARTS_MISSED = 10  # a run is inactive after the time that so many parts take at the last rate
_RUNS = 3
_RUNS_IN_DOUBT = 10  # last runs of which one may still write
_END_MARGIN_S = 5.0  # between the clocks of the storage and of a run


@dataclass
class Status:
    """Progress of a table. Unknown values are None; counts cover committed and open shards."""

    table: str
    shards_committed: int = 0
    shards_open: int = 0  # with parts, but not committed
    shards_total: int | None = None
    shards_left: int | None = None  # of the input, not committed
    bytes_committed: int = 0
    bytes_total: int | None = None
    bytes_left: int | None = None  # of the shards that are left
    samples: int = 0
    faces: int = 0
    rejects: int = 0
    samples_open: int = 0  # of uncommitted shards, included in `samples`
    faces_open: int = 0
    rejects_open: int = 0
    left_out: dict[str, int] = field(default_factory=dict)  # by the listing and committed shards
    empty_shards: int = 0  # committed shards without a sample
    exact: bool = True  # False: the numbers above are extrapolated from some thousand shards, parts
    parts: int = 0
    parts_open: int = 0  # of uncommitted shards
    parts_per_second: float | None = None  # in the last minutes of one run
    samples_per_second: float | None = None
    seconds_since_last_part: float | None = None  # by the clocks of the storage and of this machine
    at_work: bool = False  # a run has not ended, and has written something lately
    seconds_left: float | None = None  # only while a run is active, or 0 at the end
    runs: list[dict[str, Any]] = field(default_factory=list)  # the last ones, the latest first
    unfinished_forgets: list[str] = field(default_factory=list)  # when they began, ISO 8601

    @property
    def complete(self) -> bool:
        """True if every shard of the input is committed and the last run has not failed.

        False while the last run is still listing its input, because more shards may follow.
        """
        latest = self.runs[0] if self.runs else None
        listed = latest is None or latest["exit_code"] == 0 or _is_listed(latest)
        failed = latest is not None and latest["exit_code"] not in (0, None)
        return listed and not failed and not self.shards_open and self.shards_left == 0

    def to_dict(self) -> dict[str, Any]:
        """Return all fields and `complete`, ready for JSON."""
        return {**asdict(self), "complete": self.complete}


def table_status(uri: str, *, list_input: bool = False) -> Status:
    """Return the progress of the table at `uri`; `InputError` if it is not a table.

    The size of the input comes from the record of the last run that has listed it completely. With
    `list_input`, or without such a record, the input is listed now, unless it cannot be reached
    from here or the table covers only a part of it.
    """
    store = Store(uri)
    spec = read_spec(store)
    status = Status(table=store.root, runs=list(latest_runs(store, _RUNS)))
    status.unfinished_forgets = sorted(each.started for each in Forgotten.read(store).unfinished)
    commits = _Commits.of(store)
    parts_committed = _count_committed(store, status, commits)
    _count_parts(store, status, commits)
    if list_input or not _use_recorded_input(status, commits):
        _use_listed_input(status, commits, spec)
    _estimate(status, parts_committed)
    return status


@dataclass
class _Commits:
    """Shards that have a manifest."""

    etags: dict[str, str]
    times: dict[str, float]  # by the storage's clock
    states: dict[str, tuple[int, int]]  # size and hash of the etag, of the records that were read

    @classmethod
    def of(cls, store: Store) -> _Commits:
        commits = cls({}, {}, {})
        for name, info in store.infos("_shards/"):
            shard = name.removeprefix("_shards/").removesuffix(".json")
            if name == manifest_name(shard):
                commits.etags[shard], commits.times[shard] = info.etag, info.modified
        return commits

    def add(self, records: Iterable[ShardRecord], total: Counts) -> Counts:
        """Note the states of shards, and return `total` with their counts."""
        for record in records:
            self.states[record.shard] = record.size, hash(record.etag)
            total += record.counts
        return total

    def since(self, moment: float) -> tuple[int, int]:
        """Return the number of shards committed since `moment`, and their (estimated) bytes."""
        late = [shard for shard, time_ in self.times.items() if time_ >= moment]
        sizes = [self.states[shard][0] for shard in late if shard in self.states]
        return len(late), round(sum(sizes) * len(late) / max(1, len(sizes)))

    def has(self, shard: Shard) -> bool:
        """Return whether the shard is committed; if its record was read, in the present state."""
        state = self.states.get(shard.shard_id)
        now = shard.size, hash(shard.etag)
        return shard.shard_id in self.etags and state in (None, now)


def _is_listed(run: dict[str, Any]) -> bool:
    """Return whether the run has listed its input completely."""
    return bool((run["found"] or {}).get("complete"))


def _start_of(run: dict[str, Any]) -> float | None:
    """Return the start of a run as a Unix time, from its file name; None for another name."""
    try:
        return datetime.strptime(run["run"][:16], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None


def _count_committed(store: Store, status: Status, commits: _Commits) -> int:
    """Fill in the counts of committed shards; return the number of their parts."""
    total = _sum_indexed(store, commits)
    unread = (shard for shard in commits.etags if shard not in commits.states)
    with ThreadPoolExecutor(_THREADS) as pool:
        records = pool.map(partial(read_shard_record, store), islice(unread, _READ_MANIFESTS))
        total = commits.add(records, total + Counts(left_out=listed_left_out(store)))
    scaled = total.scaled(len(commits.etags) / max(1, len(commits.states)))
    status.exact = len(commits.states) == len(commits.etags)
    status.left_out = total.left_out.ordered()
    status.empty_shards = total.empty_shards
    status.shards_committed = len(commits.etags)
    status.bytes_committed = scaled.bytes
    for name in COUNTS:
        setattr(status, name, getattr(scaled, name))
    return scaled.parts


def _sum_indexed(store: Store, commits: _Commits) -> Counts:
    """Add up the rows of the index; none of them counts if a drawn one is false."""
    audit = Audit(sums=True, each=_DRAWN)
    total = commits.add(audit.sample(indexed_records(store, commits.etags)), Counts())
    if not audit.finds_mismatch(store):
        return total
    commits.states.clear()
    return Counts()


def _count_parts(store: Store, status: Status, commits: _Commits) -> None:
    """Fill in the counts of parts, the contents of open parts, and the recent rate of parts."""
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
    _use_part_times(status, times)


def _use_part_times(status: Status, times: Sequence[float]) -> None:
    """Fill in the time since the last part and the rate, from the times of all latents files."""
    latest = max(times, default=0.0)
    if latest:
        status.seconds_since_last_part = max(0.0, round(time.time() - latest, 1))
        status.parts_per_second = _rate(times, _start_of(status.runs[0]) if status.runs else None)


def _rate(times: Sequence[float], start: float | None) -> float | None:
    """Return the parts per second in the last minutes of the run that began at `start`.

    If that run has fewer than two parts, use the parts before it. The pause between two runs is
    never counted.
    """
    of_run = [time_ for time_ in times if start is None or time_ >= start]
    if len(of_run) < 2:
        of_run = [time_ for time_ in times if start is not None and time_ < start]
    latest = max(of_run, default=0.0)
    recent = [time_ for time_ in of_run if time_ >= latest - _RATE_OVER_S]
    first = min(recent, default=latest)
    return (len(recent) - 1) / (latest - first) if latest > first else None


def _seems_active(run: dict[str, Any], status: Status) -> bool:
    """Return whether a run has not ended and has recently written a record or a part."""
    if run["exit_code"] is not None:
        return False
    signs = (status.seconds_since_last_part, seconds_since(run["updated"]))
    silence = min((seconds for seconds in signs if seconds is not None), default=None)
    rate = status.parts_per_second
    longest = max(_RATE_OVER_S, _PARTS_MISSED / rate if rate else 0.0)
    return silence is not None and silence <= longest


def active_runs(store: Store) -> list[str]:
    """Return the names of those of the last ten runs that seem to write to the table at `store`.

    A run that was killed counts for some minutes, until its silence tells it from one that writes.
    """
    status = Status(table=store.root, runs=list(latest_runs(store, _RUNS_IN_DOUBT)))
    if all(run["exit_code"] is not None for run in status.runs):
        return []
    _use_part_times(status, [info.modified for _, info in store.infos(f"{LATENTS}/")])
    ended = [run["updated"] for run in status.runs if run["exit_code"] is not None]
    since_end = min((seconds_since(moment) or 0.0 for moment in ended), default=math.inf)
    last_part = status.seconds_since_last_part
    if last_part is not None and last_part > since_end - _END_MARGIN_S:
        status.seconds_since_last_part = None  # a run that has ended may have written it
    return [run["run"] for run in status.runs if _seems_active(run, status)]


def _use_recorded_input(status: Status, commits: _Commits) -> bool:
    """Fill in what is in the input and what is left, from records of runs; False without one.

    The difference of the counts is too small where committed shards were removed from the input. So
    the backlog of the latest run is compared with the commits since its start too, by the clock of
    the storage.
    """
    listed = next((run["found"] for run in status.runs if _is_listed(run)), None)
    if listed is None:
        return False
    latest = status.runs[0]["found"] or dict.fromkeys(listed, 0)
    if latest["shards"] + latest["done_shards"] > listed["shards"] + listed["done_shards"]:
        return False  # the input has grown since the earlier run listed it
    status.shards_total = listed["shards"] + listed["done_shards"]
    status.bytes_total = listed["bytes"] + listed["done_bytes"]
    shards_left = status.shards_total - status.shards_committed
    bytes_left = status.bytes_total - status.bytes_committed
    if status.runs[0]["exit_code"] != 0:
        start = _start_of(status.runs[0])
        shards, size = (0, 0) if start is None else commits.since(start)
        shards_left = max(shards_left, latest["shards"] - shards)
        bytes_left = max(bytes_left, latest["bytes"] - size)
    status.shards_left, status.bytes_left = max(0, shards_left), max(0, bytes_left)
    return True


def _use_listed_input(status: Status, commits: _Commits, spec: TableSpec) -> None:
    """Fill in what is in the input and what is left, by listing the input.

    A listing is no help if the table covers only a part of the input, chosen by a limit or by the
    codes of an import: then the records of runs are used.
    """
    layout = spec.layout
    if layout.get("limit") is not None or "input" not in spec.config:
        _use_recorded_input(status, commits)
        return
    length = int(layout.get("files_per_shard") or FILES_PER_SHARD)
    options = ReadOptions(sniff=bool(layout.get("sniff", False)))
    counts = dict.fromkeys(("shards_total", "bytes_total", "shards_left", "bytes_left"), 0)
    with suppress(PipelineError):  # the input cannot be reached from here
        for shard in list_shards(_input_of(spec), files_per_shard=length, options=options):
            counts["shards_total"] += 1
            counts["bytes_total"] += shard.size
            if not commits.has(shard):
                counts["shards_left"] += 1
                counts["bytes_left"] += shard.size
        for name, count in counts.items():
            setattr(status, name, count)


def _input_of(spec: TableSpec) -> str:
    """Return the URI of the input; a relative path is resolved as it was for the job."""
    given, place = str(spec.config["input"]), spec.layout.get("input")
    return given if place in (None, printable(canonical_uri(given))) else str(place)


def _estimate(status: Status, parts_committed: int) -> None:
    """Fill in the rate of samples and the time left.

    The number of remaining parts is estimated from the remaining bytes. There is no estimate of the
    time without an active run.
    """
    latest = status.runs[0] if status.runs else {"exit_code": None, "updated": None}
    status.at_work = _seems_active(latest, status)
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
    """Return the seconds since an ISO 8601 time, by this machine's clock."""
    if not moment:
        return None
    then = datetime.fromisoformat(moment)
    return max(0.0, (datetime.now(then.tzinfo) - then).total_seconds())
