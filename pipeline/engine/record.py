"""`_runs/<start>-<id>.json`: the account of a run, there from its start on.

A run that is killed leaves the account of its last minute with `exit_code` null.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from pipeline.config import JobConfig
from pipeline.engine.events import Listener
from pipeline.engine.messages import PartDone
from pipeline.engine.node_report import versions
from pipeline.engine.outcome import Outcome
from pipeline.engine.plan import Found, Plan
from pipeline.engine.resolve import resolved_config
from pipeline.errors import PipelineError, RequestError

EVERY_S = 60.0


def submission_id() -> str | None:
    """The id that `ray job submit` printed; None outside a Ray job."""
    config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    found = config.get("metadata", {}).get("job_submission_id")
    return None if found is None else str(found)


class RunRecord(Listener):
    """The account of one run; its file is written again and again under one name."""

    def __init__(self, config: JobConfig, plan: Plan, outcome: Outcome, started: datetime) -> None:
        self.plan, self.outcome, self.started = plan, outcome, started
        self.run_id = secrets.token_hex(4)
        self.written = time.monotonic()
        self._facts: dict[str, Any] = {
            "started": started.isoformat(timespec="seconds"),
            "updated": "",
            "exit_code": None,
            "config": resolved_config(config, plan.recipe),
            "versions": versions(),
            # Ray's, for those who look at its dashboard.
            "job": submission_id(),
        }

    def _write(self, **facts: Any) -> str:
        outcome = self.outcome.to_dict(self.plan.writer.store.root)
        found = self.plan.found.to_dict()
        outcome["skipped_parts"] = self.plan.found.done_parts
        outcome["traces"] = self.outcome.traces
        facts = self._facts | outcome | {"found": found} | facts
        facts["updated"] = datetime.now(UTC).isoformat(timespec="seconds")
        self.written = time.monotonic()
        return self.plan.writer.record_run(self.started, self.run_id, facts)

    def start(self) -> None:
        """Say that the run has begun; fails where nothing can be written."""
        name = self._write(exit_code=None)
        self.plan.strays.began = self.plan.writer.store.info(name).modified

    def on_plan(self, found: Found) -> None:
        """Say what is to do."""
        del found
        self._write(exit_code=None)

    def on_part(self, done: PartDone) -> None:
        """Say how far it is, once a minute."""
        del done
        if time.monotonic() - self.written >= EVERY_S:
            with suppress(PipelineError):  # the next minute's, or the end's, will do
                self._write(exit_code=None)

    def refuse(self, error: RequestError) -> None:
        """Say that the request turned out to be wrong."""
        with suppress(PipelineError):  # the request is what the user must hear about
            self._write(exit_code=2, errors=[str(error)])

    def on_end(self, outcome: Outcome, table: str) -> None:
        """Say how the run ended."""
        del outcome, table
        try:
            self._write()
        except PipelineError as error:
            self.outcome.fail(f"the account of this run could not be written: {error}")
