"""What the jobs that run the engine share: a config in, a run, its account, an exit code out."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping

from pipeline.cli import exit_code_of
from pipeline.config import JobConfig
from pipeline.engine.preflight import check_request
from pipeline.engine.progress import Progress
from pipeline.engine.screen import event_line
from pipeline.redaction import without_secrets
from pipeline.signals import handlers_restored, ignore_to_the_end
from pipeline.table import RunRecord


def run_to_exit_code(
    make_config: Callable[[], JobConfig], *, dry_run: bool = False, table: str | None = None
) -> int:
    """Run what `make_config` gives and tell how it went: 0 done, 1 run again, 2 wrong request.

    Errors go to stderr in one line; the last line of stdout is one JSON object. `table` is where
    the flags say that the table is to be, for the last line of a request without a config.
    """
    # That of a job that did nothing; an error adds its own.
    last_line = RunRecord().to_dict(table and without_secrets(table))
    to_machines = [False]  # whether stderr is for machines, once the config says so

    def work() -> int:
        config = make_config()
        last_line["table"] = config.output
        to_machines[0] = config.log_format == "json"
        return _run(config, dry_run, last_line)

    def tell(text: str, code: int) -> None:
        if to_machines[0]:
            name = "refused" if code == 2 else "not_started"
            text = event_line(name, "error", error=text, exit_code=code)
        print(text, file=sys.stderr, flush=True)

    return exit_code_of(work, stopped="nothing was started", last_line=last_line, tell=tell)


def _run(config: JobConfig, dry_run: bool, last_line: Mapping[str, object]) -> int:
    with handlers_restored():
        return _run_and_print(config, dry_run, last_line)


def _run_and_print(config: JobConfig, dry_run: bool, last_line: Mapping[str, object]) -> int:
    with Progress(json_lines=config.log_format == "json") as progress:
        progress.doing("checking the request")
        shards = check_request(config)
        progress.doing("loading PyTorch and Ray")
        # Slow to import: what is wrong is told before.
        from pipeline.engine import (
            estimate_job,
            print_estimate,
            print_outcome,
            run_and_ignore_signals,
        )

        if dry_run:
            found = estimate_job(config, shards=shards)
        else:
            outcome = run_and_ignore_signals(config, shards=shards)
    if dry_run:
        print_estimate(config, found)
        print(json.dumps({**last_line, **found}))
        return 0
    print_outcome(config, outcome, command=sys.argv, told=progress.told)
    print(json.dumps(outcome.to_dict(config.output)), flush=True)
    if outcome.interrupted:
        ignore_to_the_end()
    return outcome.exit_code
