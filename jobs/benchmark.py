"""Measure the engine: how busy it keeps inverters, cost per part and per start, driver's memory.

    python jobs/benchmark.py --simulate                            # one GPU of 100 images/s
    python jobs/benchmark.py --simulate --gpus 1,2,4,8,16 --speed 100,1000
    python jobs/benchmark.py --simulate --images 10000,100000,1000000 --speed 1000 --gpus 4
    python jobs/benchmark.py --input s3://bucket/photos --model restyle_psp_ffhq_encode.pt

With --simulate the real engine (shards, Ray Data, Parquet, commits) runs with an aligner that
decodes nothing and inverters that sleep as long as GPUs of that speed would take; no GPU is needed.
Each line is a run of its own. `GPU busy` is the share of their lifetime that inverters slept,
counted from a fifth of the parts to nine tenths, as they are committed: it passes 100 % where
writers catch up meanwhile. The last line of stdout is one JSON object with
every run.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from pipeline.cli import add_count, exit_code_of, job_parser, positives, print_result
from pipeline.config import load_config
from pipeline.errors import PipelineError, RequestError
from pipeline.models.files import check_model
from pipeline.storage import list_shards


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Parse the flags; lists are numbers with commas."""
    parser = job_parser(__doc__)
    parser.add_argument("--simulate", action="store_true", help="use inverters that sleep")
    parser.add_argument("--gpus", type=positives, default=[1], help="simulated GPUs (default 1)")
    parser.add_argument(
        "--speed", type=positives, default=[100], help="images per second of one GPU (default 100)"
    )
    parser.add_argument(
        "--images", type=positives, default=[10_000], help="number of images (default 10000)"
    )
    add_count(parser, "--shard-images", "images per shard", 1024)
    add_count(parser, "--image-bytes", "bytes per image", 100)
    add_count(parser, "--skew", "size of the last shard, in shards", 1)
    add_count(parser, "--part-size", "samples per part", 256)
    parser.add_argument("--input", help="real images, instead of --simulate")
    parser.add_argument("--model", default="demo", help="model for --input (default demo)")
    parser.add_argument("--run", metavar="JSON", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if not arguments.run and arguments.simulate == bool(arguments.input):
        parser.error("pass either --simulate or --input URI")
    return arguments


def run_once(request: dict[str, Any]) -> dict[str, Any]:
    """Run one job in this process and return its measurements."""
    from pipeline.engine.cluster import RaySession
    from pipeline.engine.run import run_job
    from pipeline.engine.simulate import BATCH, Trace, simulated_stages
    from pipeline.engine.stages import STAGES

    gpus, speed = request["gpus"], request["speed"]
    names = ("input", "output", "model", "part_size")
    settings = {name: request[name] for name in names} | {"inverters": gpus}
    config = load_config(None, settings | ({"identity": "none"} if speed else {}))
    stages = simulated_stages(BATCH / speed) if speed else STAGES
    trace = Trace()
    outcome = run_job(config, stages, (trace,), session=RaySession(gpus))
    return {
        **request,
        **outcome.to_dict(config.output),
        **trace.summary(gpus or 1),
        "ends_seconds_after_pool": round(trace.idle_end(gpus or 1), 2),
    }


def measure(request: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """Call `run_once` in a process of its own, over new shards and a new table."""
    from pipeline.engine.simulate import write_shards

    with tempfile.TemporaryDirectory() as folder:
        if arguments.simulate:
            write_shards(
                Path(folder) / "shards",
                request["images"],
                shard_images=arguments.shard_images,
                skew=arguments.skew,
                image_bytes=arguments.image_bytes,
            )
        request |= {"output": f"{folder}/table", "part_size": arguments.part_size}
        request |= {"model": arguments.model, "input": arguments.input or f"{folder}/shards"}
        command = [sys.executable, __file__, "--run", json.dumps(request)]
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    said = run.stdout.splitlines()
    if not said:
        raise PipelineError(f"the run ended with exit code {run.returncode} and no message")
    measured: dict[str, Any] = json.loads(said[-1])
    if run.returncode:
        kind = RequestError if run.returncode == 2 else PipelineError
        raise kind("; ".join(measured["errors"]) or "the run was stopped")
    return measured


def describe(run: dict[str, Any]) -> str:
    """Return one line about a run."""
    simulated = f"{run['gpus']:>3} GPUs x {run['speed']:>5}/s  " if run["speed"] else ""
    if not run["parts"]:
        return f"{simulated}no part was finished: {'; '.join(run['errors'])}"
    busy = "?, too few parts" if run["gpu_busy"] is None else f"{100 * run['gpu_busy']:5.1f} %"
    return (
        f"{simulated}{run['samples']:>8} images  {run['parts']:>6} parts  "
        f"start {run['first_part_seconds']:6.1f} s  {run['parts_a_second']:7.2f} parts/s  "
        f"GPU busy {busy}  "
        f"driver {run['driver_cpu_milliseconds_a_part']:6.1f} ms a part, "
        f"{run['driver_megabytes_first']:.0f} to {run['driver_megabytes_last']:.0f} MB"
    )


def run_all(arguments: argparse.Namespace) -> int:
    """Run each combination of settings and report."""
    names = ("gpus", "speed", "images")
    runs = []
    if arguments.input:
        check_model(arguments.model)
        list_shards(arguments.input).first()
    for chosen in itertools.product(*(getattr(arguments, name) for name in names)):
        request: dict[str, Any] = dict.fromkeys(names)
        if arguments.simulate:
            request = dict(zip(names, chosen, strict=True))
        runs.append(measure(request, arguments))
        print(describe(runs[-1]), file=sys.stderr, flush=True)
    print(json.dumps({"benchmark": "engine", "runs": runs}))
    return 1 if any(run["errors"] for run in runs) else 0


def main(argv: list[str]) -> int:
    """Parse, run, report; return the exit code."""
    arguments = parse_arguments(argv)
    if arguments.run:
        return print_result(lambda: run_once(json.loads(arguments.run)))
    return exit_code_of(lambda: run_all(arguments))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
