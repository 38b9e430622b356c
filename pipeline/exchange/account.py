"""`_runs/<start>-<id>.json` of an import: there from its start on, with what a job's account has.

An import that is killed leaves the account of its last minute with `exit_code` null.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pipeline.errors import PipelineError, RequestError
from pipeline.storage import LeftOut
from pipeline.table.parts import PartSummary
from pipeline.table.states import ShardState
from pipeline.table.writer import TableWriter

EVERY_S = 60.0
_FOUND = ("shards", "bytes", "done_shards", "done_bytes", "done_samples", "done_parts")


@dataclass
class Account:
    """The account of one import; as a context manager it says how that began and ended."""

    writer: TableWriter
    started: datetime
    facts: dict[str, Any] = field(default_factory=dict)  # what else is to be told
    run_id: str = field(default_factory=lambda: secrets.token_hex(4))
    found: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_FOUND, 0))
    listed: bool = False  # whether `found` is of everything
    left_out: LeftOut = field(default_factory=LeftOut)  # by the listing of the images
    icc_ignored: int = 0  # images of this run whose colour profile was not applied
    samples: int = 0  # of this run
    faces: int = 0
    parts: int = 0
    began: float = math.inf  # by the storage's clock
    written: float = 0.0  # when, by the monotonic clock

    def __enter__(self) -> Account:
        self.began = self.writer.store.info(self._write(None)).modified
        return self

    def __exit__(self, kind: object, error: BaseException | None, where: object) -> None:
        if error is None:
            self._write(0)
            return
        with suppress(PipelineError):  # what went wrong first is what the user must hear about
            told = [str(error) or type(error).__name__]
            self._write(2 if isinstance(error, RequestError) else 1, errors=told)

    def planned(self, states: Iterable[ShardState]) -> None:
        """Say what is to do and what is done."""
        for state in states:
            done = "done_" if state.committed else ""
            self.found[f"{done}shards"] += 1
            self.found[f"{done}bytes"] += state.shard.size
            if state.committed:
                self.found["done_samples"] += state.committed.samples
                self.found["done_parts"] += state.committed.parts
            else:
                self.found["done_samples"] += sum(part.samples for part in state.parts.values())
                self.found["done_parts"] += len(state.parts)
        self.listed = True
        self._write(None)

    def part(self, summary: PartSummary) -> None:
        """Count a part that was written; say how far it is, once a minute."""
        self.parts += 1
        self.samples += summary.samples
        self.faces += summary.faces
        if time.monotonic() - self.written >= EVERY_S:
            with suppress(PipelineError):  # the next minute's, or the end's, will do
                self._write(None)

    def _write(self, exit_code: int | None, **facts: Any) -> str:
        moment = datetime.now(UTC)
        told: dict[str, Any] = {
            "started": self.started.isoformat(timespec="seconds"),
            "updated": moment.isoformat(timespec="seconds"),
            "exit_code": exit_code,
            "samples": self.samples,
            "faces": self.faces,
            "rejects": 0,
            "parts": self.parts,
            "skipped_parts": self.found["done_parts"],
            "seconds": round((moment - self.started).total_seconds(), 2),
            "errors": [],
            "left_out": self.left_out.ordered(),
            "icc_ignored": self.icc_ignored,
            "found": {
                **self.found,
                "complete": self.listed,
                "left_out": self.left_out.ordered(),
            },
        }
        self.written = time.monotonic()
        described = self.writer.description.to_dict()
        facts = told | self.facts | facts | described
        return self.writer.record_run(self.started, self.run_id, facts)
