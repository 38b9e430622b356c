"""Train a ReStyle encoder: images in, a model bundle and an official checkpoint out.

    python jobs/train_restyle.py --input s3://bucket/ffhq --output s3://bucket/run --model demo
    python jobs/train_restyle.py --input faces --output run --generator stylegan2-ffhq.pt \\
        --encoder-type BackboneEncoder --backbone model_ir_se50.pth --domain faces
    ray job submit --working-dir . -- python jobs/train_restyle.py --config train.yaml

Every setting is a line of the YAML file or a flag; flags win. Run the same command again to go on
from the last checkpoint after any failure. The last line of stdout is one JSON object.

exit code  0 done   1 failed or stopped, run again to continue   2 the request is wrong
"""

from __future__ import annotations

import argparse
import json
import sys

from pipeline.errors import PipelineError, RequestError
from pipeline.flags import add_flags
from pipeline.training.config import TrainConfig, load_train_config


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """The flags as given, all text; exits with 2 on an unknown one."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file with settings")
    add_flags(parser, TrainConfig)
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Parse, train, report; returns the exit code."""
    flags = vars(parse_arguments(argv))
    file = flags.pop("config")
    try:
        config = load_train_config(file, flags)
        # Ray is slow to import: a mistake in the flags is told before.
        from pipeline.engine.training import run_training

        done = run_training(config)
    except PipelineError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2 if isinstance(error, RequestError) else 1
    except KeyboardInterrupt:
        print("stopped: run the same command again to continue", file=sys.stderr)
        return 1
    print(json.dumps(done), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
