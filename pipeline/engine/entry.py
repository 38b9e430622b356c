"""What the jobs that run the engine share: a config in, a run, its account, an exit code out."""

from __future__ import annotations

import json
from collections.abc import Callable

from pipeline.command_line import exit_code_of
from pipeline.config import JobConfig
from pipeline.engine.preflight import check_request
from pipeline.storage import without_secrets

# The last line of a job that did nothing: of these keys every last line has each.
NOTHING_DONE = {
    "samples": 0,
    "faces": 0,
    "rejects": 0,
    "parts": 0,
    "skipped_parts": 0,
    "seconds": 0.0,
    "images_per_second": 0.0,
    "table": None,
}


def run_to_exit_code(
    make_config: Callable[[], JobConfig], *, dry_run: bool = False, table: str | None = None
) -> int:
    """Run what `make_config` gives and tell how it went: 0 done, 1 run again, 2 wrong request.

    Errors go to stderr in one line; the last line of stdout is one JSON object. `table` is where
    the flags say that the table is to be, for the last line of a request without a config.
    """
    last_line = NOTHING_DONE | {"table": table and without_secrets(table)}

    def work() -> int:
        config = make_config()
        last_line["table"] = config.output
        shards = check_request(config)
        # Ray and PyTorch are slow to import: what is wrong is told before.
        from pipeline.engine import estimate_job, print_outcome, run_job

        if dry_run:
            print(json.dumps(last_line | estimate_job(config, shards=shards)))
            return 0
        outcome = run_job(config, shards=shards)
        print_outcome(config, outcome)
        print(json.dumps(outcome.to_dict(config.output)), flush=True)
        return outcome.exit_code

    return exit_code_of(work, stopped="nothing was started", last_line=last_line)
