"""The run's document, `_runs/<start>-<id>.json`: written at the start, each minute, at the end."""

from __future__ import annotations

import json
import os
from contextlib import suppress

from pipeline.config import JobConfig
from pipeline.engine.events import Listener
from pipeline.engine.messages import PartDone
from pipeline.engine.node_report import versions
from pipeline.engine.plan import Found, Plan
from pipeline.engine.resolve import resolved_config
from pipeline.errors import PipelineError, RequestError
from pipeline.table.runs import RunFile, RunRecord


def submission_id() -> str | None:
    """Return the id that `ray job submit` printed; None outside a Ray job."""
    config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    found = config.get("metadata", {}).get("job_submission_id")
    return None if found is None else str(found)


class RunRecorder(Listener):
    """Writes the document of one run."""

    def __init__(self, config: JobConfig, plan: Plan, record: RunRecord) -> None:
        facts = {
            "config": resolved_config(config, plan.recipe),
            "versions": versions(),
            # Ray's, for those who look at its dashboard.
            "job": submission_id(),
        }
        self.plan, self.record = plan, record
        self.file = RunFile(plan.writer.store, record, facts)

    def _write(self, exit_code: int | None, **changes: object) -> str:
        return self.file.write(self.plan.found.to_dict(), exit_code, **changes)

    def start(self) -> None:
        """Write that the run has begun; fails where nothing can be written."""
        self.plan.orphans.began = self.plan.writer.store.info(self._write(None)).modified

    def on_plan(self, found: Found) -> None:
        """Write what is to do."""
        del found
        self._write(None)

    def on_part(self, done: PartDone) -> None:
        """Write the counts, once a minute."""
        del done
        if self.file.is_due:
            with suppress(PipelineError):  # the next minute's, or the end's, will do
                self._write(None)

    def refuse(self, error: RequestError) -> None:
        """Write that the request turned out to be wrong."""
        with suppress(PipelineError):  # the request is what the user must hear about
            self._write(2, errors=[str(error)])

    def on_end(self, outcome: RunRecord, table: str) -> None:
        """Write how the run ended."""
        del outcome, table
        try:
            self._write(self.record.exit_code)
        except PipelineError as error:
            self.record.fail(f"the account of this run could not be written: {error}")
