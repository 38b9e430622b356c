"""Train a ReStyle encoder: images in, a model bundle and an official checkpoint out.

    python jobs/train_restyle.py --input s3://bucket/ffhq --output s3://bucket/run --model demo
    python jobs/train_restyle.py --input faces --output run --generator stylegan2-ffhq.pt \\
        --encoder-type BackboneEncoder --backbone model_ir_se50.pth --domain faces
    ray job submit --working-dir . -- python jobs/train_restyle.py --config train.yaml

Every setting is a line of the YAML file or a flag; flags win. Run the same command again to go on
from the last checkpoint after any failure, with a higher --images to train longer; settings that
would make it another training are refused. stdout has one JSON object per line: the crops, then the
lines of the log, and last how the training ended.

pipeline/training/README.md has the defaults, what a training can start from, pairs (--target) and
damaged inputs (--degrade), and every difference from the published training.

exit code  0 done   1 failed or stopped, run again to continue   2 the request is wrong,
or the training diverged, which another run would repeat
"""

from __future__ import annotations

import argparse
import json
import sys

from pipeline.cli import add_flags, exit_code_of, job_parser
from pipeline.engine.progress import Progress
from pipeline.engine.training.preflight import check_training
from pipeline.training.config import TrainConfig, load_train_config


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Parse the flags into texts; exit with 2 on an unknown one."""
    parser = job_parser(__doc__)
    parser.add_argument("--config", metavar="FILE", help="YAML file with settings")
    add_flags(parser, TrainConfig)
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Parse, check, train, report; return the exit code."""
    flags = vars(parse_arguments(argv))
    file = flags.pop("config")

    def work() -> int:
        config = load_train_config(file, flags)
        with Progress() as progress:
            progress.doing("checking the request")
            shards = check_training(config)
            progress.doing("loading PyTorch and Ray")
            # Slow to import, so the request is checked first.
            from pipeline.engine.training.run import run_training

            done = run_training(config, shards)
        print(json.dumps(done), flush=True)
        return 0

    return exit_code_of(work, stopped="run the same command again to continue")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
