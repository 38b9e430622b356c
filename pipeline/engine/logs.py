"""Structured logs on request: one JSON object a line on stderr, for machines that collect them.

Each has `time` (ISO 8601, UTC), `level` (info, warning, error) and `event`; the rest depends on it:

    run_started      table, input, versions           part_done        shard, part, counts, seconds
    planned          what is to do, what is done      part_failed      shard, error, trace
    model            how its images are treated       shard_committed  shard, counts
    readme_kept      why the card was not written     stopping         signal
    phase            what the job is at from now on   waiting          phase, seconds of it
    progress         counts, stages, seconds_left
    run_ended        what the last line of stdout has, but for a wrong request:
    refused          error, exit_code                 not_started      the same; run it again
"""

from __future__ import annotations

import json
import sys
from typing import Any

from pipeline.engine.commit import STAGES, Watch
from pipeline.engine.progress import Progress
from pipeline.engine.rows import Row
from pipeline.engine.screen import event_line
from pipeline.errors import printable
from pipeline.redaction import without_secrets
from pipeline.table import ShardRecord


class EventLog(Watch):
    """Writes events if `json_lines`; says little otherwise, as people look at the progress."""

    def __init__(self, json_lines: bool) -> None:
        self.json_lines = json_lines

    def event(self, name: str, level: str = "info", **fields: Any) -> None:
        """One line; what looks like a credential in a URI is left out."""
        if self.json_lines:
            self._print(event_line(name, level, **fields))

    def _print(self, text: str) -> None:
        if Progress.current:
            Progress.current.screen.say(text)
        else:
            print(text, file=sys.stderr, flush=True)

    def model(self, treatment: str) -> None:
        """`model`, or a line for people: how the model's images are treated."""
        if self.json_lines:
            self.event("model", treatment=treatment)
        else:
            self._print(printable(without_secrets(treatment)))

    def readme_kept(self, text: str) -> None:
        """`readme_kept`, or a line for people: the card was not written over another file."""
        if self.json_lines:
            self.event("readme_kept", "warning", reason=text)
        else:
            self._print(printable(without_secrets(text)))

    def notice(self, text: str) -> None:
        """`notice`, or a line for people: something of the cluster that changes what is used."""
        if self.json_lines:
            self.event("notice", "warning", text=text)
        else:
            self._print(printable(without_secrets(text)))

    def part(self, row: Row) -> None:
        """`part_done`."""
        self.event(
            "part_done",
            shard=row["shard_id"],
            part=int(row["part"]),
            samples=int(row["samples"]),
            faces=int(row["faces"]),
            rejects=json.loads(row["reasons"]),
            seconds={stage: round(row[f"{stage}_seconds"], 3) for stage in STAGES},
        )

    def shard(self, record: ShardRecord) -> None:
        """`shard_committed`."""
        self.event(
            "shard_committed",
            "info" if record.samples else "warning",  # one without images may not be what was meant
            shard=record.shard,
            parts=record.n_parts,
            samples=record.samples,
            faces=record.faces,
            rejects=record.rejects,
            left_out=record.counts.left_out,
        )

    def failed(self, shard_id: str, error: str, trace: str = "") -> None:
        """`part_failed`, or a line for people: at once, as a run may go on for hours."""
        known = {"trace": trace} if trace else {}
        self.event("part_failed", "error", shard=shard_id, error=error, **known)
        if Progress.current:
            Progress.current.failed(error)
