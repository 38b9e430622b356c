"""What a run tells: the listener interface, and its log.

Listeners hear of each part and each shard once. `EventLog` is the one that logs, through the
logger `pipeline.events`; the other loggers are named after their modules. A run attaches a handler
to the logger `pipeline`: JSON lines on request, else the few lines that are for people. Set that
logger's level to hear less (`logging.getLogger("pipeline").setLevel(logging.ERROR)`).

A JSON line has `time` (ISO 8601, UTC), `level` (info, warning, error) and `event`; the rest depends
on it:

    run_started      table, input, versions           part_done        shard, part, counts, seconds
    planned          what is to do, what is done      part_failed      shard, error, trace
    model            how its images are treated       shard_committed  shard, counts
    readme_kept      why the card was not written     stopping         signal
    phase            what the job is at from now on   waiting          phase, seconds of it
    progress         counts, stages, seconds_left     log              logger, text
    run_ended        what the last line of stdout has, but for a wrong request:
    refused          error, exit_code                 not_started      the same; run it again
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pipeline.engine.messages import PartDone
from pipeline.engine.progress import Progress
from pipeline.engine.screen import event_line
from pipeline.errors import printable
from pipeline.redaction import without_secrets
from pipeline.table import RunRecord, ShardRecord

if TYPE_CHECKING:
    from pipeline.engine.plan import Found

_LIBRARY = logging.getLogger("pipeline")
_EVENTS = logging.getLogger("pipeline.events")


class Listener:
    """Interface of all that follows a run; each method does nothing by default."""

    def on_plan(self, found: Found) -> None:
        """Take note that the input, or the first few thousand of its shards, are compared."""

    def on_part(self, done: PartDone) -> None:
        """Take note of a part that is in the table."""

    def on_shard(self, record: ShardRecord) -> None:
        """Take note of a committed shard."""

    def on_failure(self, shard_id: str, error: str, trace: str = "") -> None:
        """Take note that a part or a commit failed; an unexpected error has a `trace`."""

    def on_end(self, outcome: RunRecord, table: str) -> None:
        """Take note of how the run ended."""


def log_event(name: str, level: str = "info", line: str = "", **fields: Any) -> None:
    """Log one event; people see its `line`, where it has one, and machines its `fields`."""
    number = logging.getLevelNamesMapping()[level.upper()]
    _EVENTS.log(number, line or name, extra={"event": name, "fields": fields, "line": line})


class EventLog(Listener):
    """Logs what happens."""

    def on_plan(self, found: Found) -> None:
        """Log `planned`."""
        log_event("planned", **found.to_dict())

    def on_part(self, done: PartDone) -> None:
        """Log `part_done`."""
        counts = done.counts
        log_event(
            "part_done",
            shard=done.shard_id,
            part=done.part,
            samples=counts.samples,
            faces=counts.faces,
            rejects=dict(sorted(counts.reasons.items())),
            seconds={stage: round(seconds, 3) for stage, seconds in counts.stage_seconds.items()},
        )

    def on_shard(self, record: ShardRecord) -> None:
        """Log `shard_committed`."""
        log_event(
            "shard_committed",
            "info" if record.samples else "warning",  # one without images may not be what was meant
            shard=record.shard,
            parts=record.n_parts,
            samples=record.samples,
            faces=record.faces,
            rejects=record.rejects,
            left_out=record.counts.left_out,
        )

    def on_failure(self, shard_id: str, error: str, trace: str = "") -> None:
        """Log `part_failed`."""
        known = {"trace": trace} if trace else {}
        log_event("part_failed", "error", shard=shard_id, error=error, **known)

    def on_end(self, outcome: RunRecord, table: str) -> None:
        """Log `run_ended`."""
        level = "error" if outcome.errors else "warning" if outcome.interrupted else "info"
        log_event("run_ended", level, **outcome.to_dict(table))


class JsonHandler(logging.Handler):
    """Writes a JSON line to stderr for each record, without credentials."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        plain = {"logger": record.name, "text": record.getMessage()}
        fields = getattr(record, "fields", plain)
        _print(event_line(getattr(record, "event", "log"), record.levelname.lower(), **fields))


class TextHandler(logging.Handler):
    """Writes to stderr the records that have a line for people."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line, or nothing."""
        if line := getattr(record, "line", record.getMessage()):
            _print(printable(without_secrets(line)))


def _print(line: str) -> None:
    if Progress.current:
        Progress.current.screen.say(line)
    else:
        print(line, file=sys.stderr, flush=True)


@contextmanager
def logging_to_stderr(*, json_lines: bool) -> Iterator[None]:
    """Write what this library logs inside the block to stderr, from INFO on if no level is set."""
    handler = JsonHandler() if json_lines else TextHandler()
    level, propagates = _LIBRARY.level, _LIBRARY.propagate
    if level == logging.NOTSET:
        _LIBRARY.setLevel(logging.INFO)
    _LIBRARY.propagate = False  # a handler of the root logger would write each line again
    _LIBRARY.addHandler(handler)
    try:
        yield
    finally:
        _LIBRARY.removeHandler(handler)
        _LIBRARY.propagate = propagates
        _LIBRARY.setLevel(level)
