"""Shared body of the jobs that write a table: config, run, summary, exit code."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from contextlib import closing

from pipeline.cli import exit_code_of
from pipeline.config import JobConfig
from pipeline.engine.console.progress import Progress
from pipeline.engine.console.screen import event_line
from pipeline.engine.preflight import check_request
from pipeline.redaction import without_secrets
from pipeline.signals import handlers_restored, ignore_to_the_end
from pipeline.storage import Store
from pipeline.table import SPEC_NAME, RunRecord


def run_to_exit_code(
    make_config: Callable[[], JobConfig], *, dry_run: bool = False, table: str | None = None
) -> int:
    """Run the config of `make_config`; return 0 (done), 1 (run again) or 2 (wrong request).

    An error is one line on stderr; the last line of stdout is one JSON object. `table` is the
    output in the flags, for that line if the config is invalid.
    """
    # The line of a job that did nothing; an error adds its keys.
    last_line = RunRecord().to_dict(table and without_secrets(table))
    to_machines = False  # whether stderr is for JSON lines, once the config is read

    def work() -> int:
        nonlocal to_machines
        config = make_config()
        last_line["table"] = config.output
        to_machines = config.log_format == "json"
        return _run(config, dry_run, last_line)

    def report(text: str, code: int) -> None:
        if to_machines:
            name = "refused" if code == 2 else "not_started"
            text = event_line(name, "error", error=text, exit_code=code)
        print(text, file=sys.stderr, flush=True)

    return exit_code_of(work, stopped="nothing was started", last_line=last_line, tell=report)


@handlers_restored()
def _run(config: JobConfig, dry_run: bool, last_line: Mapping[str, object]) -> int:
    with Progress(json_lines=config.log_format == "json") as progress:
        progress.enter_phase("checking the request")
        shards = check_request(config)
        progress.enter_phase("loading PyTorch and Ray")
        # Slow to import: a wrong request is reported before.
        from pipeline.engine.cluster import RaySession

        with closing(RaySession()) as session:
            if not dry_run and not Store(config.output).exists(SPEC_NAME):
                session.start()  # a table that exists may have nothing to do
            from pipeline.engine.console.summary import print_estimate, print_outcome
            from pipeline.engine.dry_run import estimate_job
            from pipeline.engine.run import run_and_ignore_signals

            if dry_run:
                estimate = estimate_job(config, shards=shards)
            else:
                outcome = run_and_ignore_signals(config, shards=shards, session=session)
    if dry_run:
        print_estimate(config, estimate)
        print(json.dumps({**last_line, **estimate}))
        return 0
    print_outcome(config, outcome, command=sys.argv, reported=progress.reported)
    print(json.dumps(outcome.to_dict(config.output)), flush=True)
    if outcome.interrupted:
        ignore_to_the_end()
    return outcome.exit_code
