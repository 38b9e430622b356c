"""Run records, `_runs/*.json`: what each run of a job or an import did, and how long it took.

Times are stored only here. In the rows they would give a repeated part other bytes.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, NamedTuple

import pyarrow as pa

from pipeline.errors import TableError
from pipeline.storage import CREDENTIALS_EXPIRED, LeftOut, Store
from pipeline.table.spec import read_json, to_json
from pipeline.table.stats import STAGE_NAMES, Counts

WRITE_EVERY_S = 60.0
# If the storage is down, every part fails; the first errors are enough to see why.
MAX_ERRORS = 1000
MAX_TRACES = 20  # of different errors, 20,000 characters each
MAX_WARNINGS = 100
_FOLDER = "_runs/"
_THREADS = 8
_LISTED_RUNS = 10  # latest runs that are searched for the result of a complete listing
_BACKLOG_COUNTS = ("shards", "done_shards", "bytes", "done_bytes")


class _Field(NamedTuple):
    """Field of a run's document that this module reads."""

    name: str
    kinds: tuple[type, ...]
    column: pa.DataType | None = None  # in the view `runs`
    in_status: bool = False


_NUMBER = (int, float)
_FIELDS = (
    _Field("started", (str,), pa.string(), True),  # ISO 8601, UTC
    _Field("updated", (str,), None, True),
    _Field("exit_code", _NUMBER, pa.int64(), True),
    *(_Field(name, _NUMBER, pa.int64(), True) for name in ("samples", "faces", "rejects", "parts")),
    _Field("skipped_parts", _NUMBER, pa.int64(), True),
    _Field("icc_ignored", _NUMBER, pa.int64()),
    _Field("identity_missed", _NUMBER, pa.int64()),
    _Field("seconds", _NUMBER, pa.float64(), True),  # from start to end
    _Field("images_per_second", _NUMBER, pa.float64()),
    _Field("inversion_seconds", _NUMBER, pa.float64()),
    _Field("stage_seconds", (dict,)),
    _Field("found", (dict,), None, True),
    _Field("errors", (list,)),
)
_SCHEMA = pa.schema(
    [
        ("run", pa.string()),  # the file's name
        *((each.name, each.column) for each in _FIELDS if each.column),
        *((f"{stage}_seconds", pa.float64()) for stage in STAGE_NAMES),  # summed over workers
        ("errors", pa.int64()),
    ]
)


@dataclass
class RunRecord:
    """Work, errors and warnings of one run so far; an `exit_code` of 1 means: run it again."""

    counts: Counts = field(default_factory=Counts)
    skipped_parts: int = 0
    skipped_samples: int = 0
    listed: LeftOut = field(default_factory=LeftOut)  # files that the listing passed over
    first_part_seconds: float = 0.0  # from the start to the first part
    last_part_seconds: float = 0.0
    errors: list[str] = field(default_factory=list)
    more_errors: int = 0
    traces: list[str] = field(default_factory=list)  # of unexpected errors
    warnings: list[str] = field(default_factory=list)
    more_warnings: int = 0
    interrupted: bool = False
    ray_log: str | None = None  # folder of Ray's log, if it is on this machine
    means: dict[str, list[float | None]] | None = None  # of the metrics, if this run changed them
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    clock: float = field(default_factory=time.monotonic)  # at the start

    @property
    def seconds(self) -> float:
        """Seconds since the start of the run."""
        return time.monotonic() - self.clock

    @property
    def exit_code(self) -> int:
        """0 if every shard is committed."""
        return 1 if self.errors or self.interrupted else 0

    def add_part(self, counts: Counts) -> None:
        """Add the counts of a part that was written."""
        self.last_part_seconds = self.seconds
        if not self.counts.parts:
            self.first_part_seconds = self.last_part_seconds
        self.counts += counts

    def fail(self, error: str, trace: str = "") -> None:
        """Record an error; an unexpected one with its `trace`."""
        if trace and trace not in self.traces and len(self.traces) < MAX_TRACES:
            self.traces.append(trace)
        if len(self.errors) < MAX_ERRORS:
            self.errors.append(error)
        else:
            self.more_errors += 1

    def fail_first(self, error: str) -> None:
        """Record the most important error, before all others."""
        self.errors.insert(0, error)

    def explain_expired(self, **places: str) -> None:
        """Record, before all other errors, for which storage credentials expired, if they did.

        `places` are the URIs of the run by their role, such as input and output.
        """
        expired = [error for error in self.errors if CREDENTIALS_EXPIRED in error]
        if not expired:
            return
        of = [
            f"the {name} '{uri}'"
            for name, uri in places.items()
            if any(f"'{uri}/" in error or f"'{uri}'" in error for error in expired)
        ]
        self.fail_first(
            f"{CREDENTIALS_EXPIRED} for {' and '.join(of) or 'the storage'}: get new ones and run "
            "the same command again, which does only the missing parts"
        )

    def warn(self, warning: str) -> None:
        """Record something that is not an error but may not be intended."""
        if len(self.warnings) < MAX_WARNINGS:
            self.warnings.append(warning)
        else:
            self.more_warnings += 1

    @property
    def left_out(self) -> LeftOut:
        """Files that this run passed over, in the listing of the input and inside shards."""
        return (Counts(left_out=self.listed) + self.counts).left_out

    def to_dict(self, table: str | None) -> dict[str, Any]:
        """Return the job's last output line: the work of this run, not the table's contents."""
        counts, seconds = self.counts, self.seconds
        stages = sorted(counts.stage_seconds.items())
        return {
            "samples": counts.samples,
            "faces": counts.faces,
            "rejects": counts.rejects,
            "rejects_by_reason": dict(sorted(counts.reasons.items())),
            "left_out": self.left_out.ordered(),
            "empty_shards": counts.empty_shards,
            "icc_ignored": counts.icc_ignored,
            "identity_missed": counts.identity_missed,
            "parts": counts.parts,
            "skipped_parts": self.skipped_parts,
            "seconds": round(seconds, 2),
            "first_part_seconds": round(self.first_part_seconds, 2),
            "images_per_second": round(counts.samples / seconds, 3) if seconds else 0.0,
            "stage_seconds": {stage: round(value, 2) for stage, value in stages},
            "inversion_seconds": round(counts.inversion_seconds, 3),
            "errors": self.errors,
            "more_errors": self.more_errors,
            "warnings": self.warnings,
            "more_warnings": self.more_warnings,
            "exit_code": self.exit_code,
            "table": table,
        }


class RunFile:
    """Document of one run, rewritten under one name while the run works.

    A killed run leaves its last document, at most a minute old, with `exit_code` null.
    """

    def __init__(self, store: Store, record: RunRecord, facts: Mapping[str, Any]) -> None:
        """Prepare the document; `facts` are its other fields, such as config and versions."""
        self.store, self.record, self.facts = store, record, dict(facts)
        self.run_id = secrets.token_hex(4)
        self._written = time.monotonic()

    def write(self, found: Mapping[str, Any], exit_code: int | None, **changes: Any) -> str:
        """Write the document and return its name.

        `found` are counts of the input's shards and parts, finished and not, by the listing.
        """
        record = replace(self.record, skipped_parts=int(found.get("done_parts", 0)))
        document = {
            "started": record.started.isoformat(timespec="seconds"),
            "updated": datetime.now(UTC).isoformat(timespec="seconds"),
            **self.facts,
            **record.to_dict(self.store.root),
            "traces": record.traces,
            "found": dict(found),
            **changes,
        }
        document["exit_code"] = exit_code
        self._written = time.monotonic()
        return put_run(self.store, record.started, self.run_id, document)

    @property
    def is_due(self) -> bool:
        """True if the document was last written a minute ago or earlier."""
        return time.monotonic() - self._written >= WRITE_EVERY_S


def put_run(store: Store, started: datetime, run_id: str, document: Mapping[str, Any]) -> str:
    """Write the document `_runs/<start>-<id>.json` of a run; return its name."""
    name = f"{_FOLDER}{started:%Y%m%dT%H%M%SZ}-{run_id}.json"
    store.put(name, to_json(dict(document)))
    return name


def read_run(store: Store, name: str) -> dict[str, Any]:
    """Read the document of one run, in which fields may be missing.

    Raises `TableError` if a field has another type.
    """
    document = read_json(store, name)
    given = {name: value for name, value in document.items() if value is not None}
    try:
        for each in _FIELDS:
            if each.name in given:
                _check(each.name, given[each.name], each.kinds)
        if given.get("updated"):
            datetime.fromisoformat(given["updated"])
        for stage, seconds in given.get("stage_seconds", {}).items():
            _check(stage, seconds, _NUMBER)
        for count in _BACKLOG_COUNTS if given.get("found") else ():
            _check(count, given["found"].get(count), (int,))
    except (TypeError, ValueError) as error:
        raise TableError(
            f"'{store.uri(name)}' is not the record of a run ({error}): rename or delete it"
        ) from error
    return document


def run_names(store: Store) -> list[str]:
    """Return the names of the records of all runs, in the order of their start."""
    return [name for name in store.names(_FOLDER) if name.endswith(".json")]


def latest_runs(store: Store, count: int) -> Iterator[dict[str, Any]]:
    """Yield the fields that a status shows of the latest `count` runs, the latest first."""
    for name in run_names(store)[: -count - 1 : -1]:
        document = read_run(store, name)
        facts = {each.name: document.get(each.name) for each in _FIELDS if each.in_status}
        errors = document.get("errors") or []
        yield facts | {
            "job": document.get("job"),
            "run": name.removeprefix(_FOLDER).removesuffix(".json"),
            "errors": len(errors),
            "first_error": str(errors[0]) if errors else None,
        }


def listed_left_out(store: Store) -> LeftOut:
    """Return the files that the latest complete listing of the input passed over."""
    for name in run_names(store)[: -_LISTED_RUNS - 1 : -1]:
        with suppress(TableError, TypeError):
            backlog = read_run(store, name).get("found") or {}
            if backlog.get("complete"):
                return LeftOut.from_dict(backlog.get("left_out", {}))
    return LeftOut()


def _check(name: str, value: object, kinds: tuple[type, ...]) -> None:
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise TypeError(f"'{name}' is a {type(value).__name__}")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError(f"'{name}' does not fit into 64 bits")


def read_runs(store: Store) -> list[dict[str, Any]]:
    """Read all runs in the order of their start; each with its file's name as `run`."""
    names = run_names(store)
    with ThreadPoolExecutor(_THREADS) as pool:
        documents = pool.map(lambda name: read_run(store, name), names)
        return [
            {**document, "run": name.removeprefix(_FOLDER)}
            for name, document in zip(names, documents, strict=True)
        ]


def runs_table(runs: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Return the runs as rows; missing fields are null."""
    return pa.Table.from_pylist([_row(run) for run in runs], schema=_SCHEMA)


def _row(run: Mapping[str, Any]) -> dict[str, Any]:
    stages = run.get("stage_seconds") or {}
    seconds = {f"{stage}_seconds": stages.get(stage) for stage in STAGE_NAMES}
    return {**run, **seconds, "errors": len(run.get("errors") or ())}
