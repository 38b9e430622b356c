"""Events of a run: the listener interface and the log.

Listeners are called once per part and once per shard. `EventLog` logs through the logger
`pipeline.events`; the other loggers are named after their modules. A run attaches a handler to the
logger `pipeline`: JSON lines on request, else the few lines that are for people. Raise the level of
that logger to see less (`logging.getLogger("pipeline").setLevel(logging.ERROR)`).

A JSON line has `time` (ISO 8601, UTC), `level` (info, warning, error) and `event`; the rest depends
on it:

    run_started      table, input, versions           part_done        shard, part, counts, seconds
    planned          work to do, work done             part_failed      shard, error, trace
    model            how its images are treated       shard_committed  shard, counts
    readme_kept      why the card was not written     stopping         signal
    notice           text about the cluster           strays_removed   files
    phase            what the job does from now on    waiting          phase, seconds of it
    progress         counts, stages, seconds_left     log              logger, text
    run_ended        the keys of the last line of stdout; for a wrong request instead:
    refused          error, exit_code                 not_started      the same; run it again
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pipeline.engine.console.progress import Progress
from pipeline.engine.console.screen import event_line
from pipeline.engine.messages import PartDone
from pipeline.errors import printable
from pipeline.redaction import without_secrets
from pipeline.table import RunRecord, ShardRecord

if TYPE_CHECKING:
    from pipeline.engine.plan import Backlog

_LIBRARY = logging.getLogger("pipeline")
_EVENTS = logging.getLogger("pipeline.events")


class Listener:
    """Interface of what follows a run; each method does nothing by default."""

    def on_plan(self, backlog: Backlog) -> None:
        """Handle that the input, or its first few thousand shards, is compared with the table."""

    def on_part(self, done: PartDone) -> None:
        """Handle a part that is written."""

    def on_shard(self, record: ShardRecord) -> None:
        """Handle a committed shard."""

    def on_failure(self, shard_id: str, error: str, trace: str = "") -> None:
        """Handle a failed part or commit; an unexpected error has a `trace`."""

    def on_end(self, outcome: RunRecord, table: str) -> None:
        """Handle the end of the run."""


def log_event(name: str, level: str = "info", line: str = "", **fields: Any) -> None:
    """Log one event: its `line`, if any, is for people, its `fields` are for machines."""
    number = logging.getLevelNamesMapping()[level.upper()]
    _EVENTS.log(number, line or name, extra={"event": name, "fields": fields, "line": line})


class EventLog(Listener):
    """Listener that logs each event, and updates the progress of this process, if there is one."""

    def on_plan(self, backlog: Backlog) -> None:
        """Log `planned`."""
        log_event("planned", **backlog.to_dict())

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
        if Progress.current:
            Progress.current.update()

    def on_shard(self, record: ShardRecord) -> None:
        """Log `shard_committed`."""
        log_event(
            "shard_committed",
            "info" if record.samples else "warning",  # a shard without images may be a mistake
            shard=record.shard,
            parts=record.n_parts,
            samples=record.samples,
            faces=record.faces,
            rejects=record.rejects,
            left_out=record.counts.left_out,
        )

    def on_failure(self, shard_id: str, error: str, trace: str = "") -> None:
        """Log `part_failed`, and print the first failures at once, as a run may take hours."""
        traced = {"trace": trace} if trace else {}
        log_event("part_failed", "error", shard=shard_id, error=error, **traced)
        if Progress.current:
            Progress.current.failed(error)

    def on_end(self, outcome: RunRecord, table: str) -> None:
        """Log `run_ended`."""
        level = "error" if outcome.errors else "warning" if outcome.interrupted else "info"
        log_event("run_ended", level, **outcome.to_dict(table))


class _StderrHandler(logging.Handler):
    """Writes a line to stderr, without credentials: as JSON for each record, or for people."""

    def __init__(self, *, json_lines: bool) -> None:
        super().__init__()
        self.json_lines = json_lines

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line; nothing if the record has none for people."""
        text = record.getMessage()
        if self.json_lines:
            fields = getattr(record, "fields", {"logger": record.name, "text": text})
            line = event_line(getattr(record, "event", "log"), record.levelname.lower(), **fields)
        else:
            line = printable(without_secrets(getattr(record, "line", text)))
        if line and Progress.current:
            Progress.current.screen.say(line)
        elif line:
            print(line, file=sys.stderr, flush=True)


@contextmanager
def logging_to_stderr(*, json_lines: bool) -> Iterator[None]:
    """Write the library's log to stderr inside the block, from level INFO if none is set."""
    handler = _StderrHandler(json_lines=json_lines)
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
