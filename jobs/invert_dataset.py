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
from typing import Any

from pydantic.fields import FieldInfo

from pipeline.config import JobConfig, load_config
from pipeline.errors import PipelineError, RequestError


def _arms(kind: Any) -> list[Any]:
    """The types that `kind` allows, but for None and what they are annotated with."""
    origin = typing.get_origin(kind)
    if origin is typing.Annotated:
        return _arms(typing.get_args(kind)[0])
    if origin in (types.UnionType, typing.Union):
        return [arm for part in typing.get_args(kind) for arm in _arms(part)]
    return [] if kind is type(None) else [kind]


def add_flag(parser: argparse.ArgumentParser, name: str, field: FieldInfo) -> None:
    """One flag for one setting; unset flags are None and leave the file's value."""
    flag, text = "--" + name.replace("_", "-"), field.description
    kinds = _arms(field.annotation)
    if field.default is not None and not field.is_required():
        text = f"{text} (default {field.default})"
    choices = [choice for kind in kinds for choice in typing.get_args(kind)]
    if kinds == [bool]:
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, help=text)
    elif choices and len(kinds) == 1:
        parser.add_argument(flag, choices=choices, help=text)
    else:
        metavar = "|".join(["N" if kinds[0] in (int, float) else "TEXT", *choices])
        parser.add_argument(flag, metavar=metavar, help=text)


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
