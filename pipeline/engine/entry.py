"""What the jobs that run the engine share: a config in, a run, its account, an exit code out."""

from __future__ import annotations

import json
from collections.abc import Callable

from pipeline.command_line import exit_code_of
from pipeline.config import JobConfig


def run_to_exit_code(make_config: Callable[[], JobConfig], *, dry_run: bool = False) -> int:
    """Run what `make_config` gives and tell how it went: 0 done, 1 run again, 2 wrong request.

    Errors go to stderr in one line; the last line of stdout is one JSON object.
    """

    def work() -> int:
        config = make_config()
        # Ray is slow to import: a mistake in the flags is told before.
        from pipeline.engine import estimate_job, print_outcome, run_job

        if dry_run:
            print(json.dumps(estimate_job(config)))
            return 0
        outcome = run_job(config)
        print_outcome(config, outcome)
        print(json.dumps(outcome.to_dict(config.output)), flush=True)
        return outcome.exit_code

    return exit_code_of(work, stopped="nothing was started")
