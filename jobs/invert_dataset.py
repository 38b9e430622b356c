"""Invert a dataset of images: aligned faces, ReStyle, a Parquet table of W+ codes with metrics.

    python jobs/invert_dataset.py --input s3://bucket/photos --output s3://bucket/latents
    ray job submit --working-dir . -- python jobs/invert_dataset.py --config run.yaml

Every setting is a line of the YAML file or a flag; flags win. Run the same command again to
continue after any failure. The last line of stdout is one JSON object.

exit code  0 done   1 failed or stopped, run again to continue   2 the request is wrong
"""

from __future__ import annotations

import argparse
import json
import sys
import types
import typing

from pydantic.fields import FieldInfo

from pipeline.config import JobConfig, load_config
from pipeline.errors import PipelineError, RequestError


def add_flag(parser: argparse.ArgumentParser, name: str, field: FieldInfo) -> None:
    """One flag for one setting; unset flags are None and leave the file's value."""
    flag, text = "--" + name.replace("_", "-"), field.description
    default = "" if field.is_required() else f" (default {field.default})"
    kind = field.annotation
    if isinstance(kind, types.UnionType):
        kind = next(arm for arm in typing.get_args(kind) if arm is not type(None))
    if kind is bool:
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, help=text)
    elif typing.get_origin(kind) is typing.Literal:
        parser.add_argument(flag, choices=typing.get_args(kind), help=f"{text}{default}")
    else:
        metavar = "N" if kind in (int, float) else "TEXT"
        parser.add_argument(flag, metavar=metavar, help=f"{text}{default}")


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """The flags as given, all text; exits with 2 on an unknown one."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file with settings")
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be done; write nothing"
    )
    for name, field in JobConfig.model_fields.items():
        add_flag(parser, name, field)
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Parse, plan, run, report; returns the exit code."""
    arguments = vars(parse_arguments(argv))
    config_file, dry_run = arguments.pop("config"), arguments.pop("dry_run")
    try:
        config = load_config(config_file, arguments)
        # Ray is slow to import: a mistake in the flags is told before.
        from pipeline.engine import estimate_job, print_outcome, run_job

        if dry_run:
            print(json.dumps(estimate_job(config)))
            return 0
        outcome = run_job(config)
    except PipelineError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2 if isinstance(error, RequestError) else 1
    except KeyboardInterrupt:
        print("stopped: nothing was started", file=sys.stderr)
        return 1
    print_outcome(config, outcome)
    print(json.dumps(outcome.to_dict(config.output)), flush=True)
    return outcome.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
