"""What the command-line jobs share: a config in, a run, its account, an exit code out."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

from pipeline.config import JobConfig
from pipeline.errors import PipelineError, RequestError


def exit_code_of(work: Callable[[], int], stopped: str) -> int:
    """What `work` returns; 1 or 2 for its error.

    The error goes to stderr in one line, and with the code to stdout as a JSON object, as Ray makes
    every exit code of a job but 0 a 1. `stopped` is what a Ctrl-C means to the user.
    """
    try:
        return work()
    except PipelineError as error:
        code = 2 if isinstance(error, RequestError) else 1
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        print(json.dumps({"errors": [str(error)], "exit_code": code}), flush=True)
        return code
    except KeyboardInterrupt:
        print(f"stopped: {stopped}", file=sys.stderr)
        return 1


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

    return exit_code_of(work, "nothing was started")
