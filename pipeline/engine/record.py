"""Write a run's record, `_runs/<start>-<id>.json`, at the start, each minute and at the end."""

from __future__ import annotations

from contextlib import suppress

from pipeline.config import JobConfig
from pipeline.engine.address import ray_job
from pipeline.engine.events import Listener
from pipeline.engine.messages import PartDone
from pipeline.engine.nodes.node_report import versions
from pipeline.engine.plan import Backlog, Plan
from pipeline.engine.resolve import resolved_config
from pipeline.errors import PipelineError, RequestError
from pipeline.table.runs import RunFile, RunRecord


class RunRecorder(Listener):
    """Listener that writes the record of one run."""

    def __init__(self, config: JobConfig, plan: Plan, record: RunRecord) -> None:
        facts = {
            "config": resolved_config(config, plan.job),
            "versions": versions(),
            # The id that `ray job submit` printed; none outside a Ray job.
            "job": ray_job().get("metadata", {}).get("job_submission_id"),
        }
        self.plan, self.record = plan, record
        self.file = RunFile(plan.writer.store, record, facts)

    def _write(self, exit_code: int | None, **changes: object) -> str:
        return self.file.write(self.plan.backlog.to_dict(), exit_code, **changes)

    def start(self) -> None:
        """Write the first record; raises if the output cannot be written."""
        self.plan.orphans.began = self.plan.writer.store.info(self._write(None)).modified

    def on_plan(self, backlog: Backlog) -> None:
        """Write the backlog."""
        del backlog
        self._write(None)

    def on_part(self, done: PartDone) -> None:
        """Write the counts, once per minute."""
        del done
        if self.file.is_due:
            with suppress(PipelineError):  # the next write has them too
                self._write(None)

    def refuse(self, error: RequestError) -> None:
        """Write that the request is wrong."""
        with suppress(PipelineError):  # the user must see the error of the request
            self._write(2, errors=[str(error)])

    def on_end(self, outcome: RunRecord, table: str) -> None:
        """Write how the run ended."""
        del outcome, table
        try:
            self._write(self.record.exit_code)
        except PipelineError as error:
            self.record.fail(f"the record of this run could not be written: {error}")
