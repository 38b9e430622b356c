"""Invert a dataset of images: aligned faces, ReStyle, a Parquet table of W+ codes with metrics.

    python jobs/invert_dataset.py --input s3://bucket/photos --output s3://bucket/latents
    ray job submit --working-dir . -- python jobs/invert_dataset.py --config run.yaml

Every setting is a line of the YAML file or a flag; flags win. Run the same command again to
continue after any failure. The last line of stdout is one JSON object.

exit code  0 done   1 failed or stopped, run again to continue   2 the request is wrong
"""

from __future__ import annotations

import argparse
import sys

from pipeline.cli import add_count, add_flags, job_parser
from pipeline.config import JobConfig, load_config
from pipeline.engine.job import run_to_exit_code
from pipeline.rerun import run_again
from pipeline.table import RunRecord


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Parse the flags into texts; exit with 2 on an unknown one."""
    parser = job_parser(__doc__, last_line=RunRecord().to_dict(None))
    parser.add_argument("--config", metavar="FILE", help="YAML file with settings")
    parser.add_argument(
        "--dry-run", action="store_true", help="print what would be done; write nothing"
    )
    add_count(
        parser,
        "--attempts",
        "run a job that failed again, N times in all; a wrong request is not run again",
        1,
    )
    add_flags(parser, JobConfig)
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Parse, check, run, report; return the exit code."""
    flags = vars(parse_arguments(argv))
    config_file, dry_run = flags.pop("config"), flags.pop("dry_run")
    attempts = flags.pop("attempts")
    if attempts > 1:  # each in a process of its own: a failed run may keep its actors
        return run_again([sys.executable, __file__, *argv, "--attempts", "1"], attempts)
    return run_to_exit_code(
        lambda: load_config(config_file, flags), dry_run=dry_run, table=flags["output"]
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
