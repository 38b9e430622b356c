"""The engine's own cost: start, overhead a part, and the driver's memory by number of images.

python tests/bench/engine.py [--images 1000,100000] [--part-size 256]
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
# The workers find the simulated stages where this process does.
os.environ["PYTHONPATH"] = str(ROOT)

from tests.tiny_bundle import write_tiny_bundle  # noqa: E402

REGIME = """\
Regime: tar shards of 1,024 members of 100 bytes -> read -> simulated align -> simulated invert ->
Parquet table on this disk, by Ray Data with one aligner and one inverter. The simulated stages
decode nothing and give codes of zeros [10, 512], so that seconds are the engine's: reading tars,
moving parts between processes, making and writing Parquet, committing shards.
  start         from the call to the first part written: planning, Ray, actors
  part          (last - first part) / (parts - 1), all stages overlapping, on all cores
  driver        largest resident memory of the driver process, each size in a process of its own
"""
MEMBERS = 1024
MEMBER = bytes(100)


def write_shards(folder: Path, images: int) -> None:
    """Tars of `images` members in all."""
    folder.mkdir()
    for first in range(0, images, MEMBERS):
        with tarfile.open(folder / f"shard-{first // MEMBERS:05d}.tar", "w") as tar:
            for number in range(first, min(first + MEMBERS, images)):
                member = tarfile.TarInfo(f"{number:08d}.jpg")
                member.size = len(MEMBER)
                tar.addfile(member, io.BytesIO(MEMBER))


def run_simulated(folder: str, part_size: int) -> dict[str, Any]:
    """One run over `folder`/shards in this process; what it took."""
    from pipeline.config import JobConfig
    from pipeline.engine import run_job
    from pipeline.engine.dataset import Stages
    from pipeline.engine.simulate import SimulatedAlign, SimulatedInvert

    config = JobConfig(
        input=f"{folder}/shards",
        output=f"{folder}/table",
        model=f"{folder}/model",
        identity="none",
        part_size=part_size,
        align_workers=1,
        inverters=1,
    )
    outcome = run_job(config, Stages(SimulatedAlign, SimulatedInvert))
    tally = outcome.tally
    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "images": tally.samples,
        "parts": tally.parts,
        "start_seconds": round(tally.first_seconds, 2),
        "seconds": round(tally.seconds, 2),
        "milliseconds_a_part": round(
            1000 * (tally.last_seconds - tally.first_seconds) / max(1, tally.parts - 1), 1
        ),
        "images_per_second": round(tally.samples / tally.seconds, 1),
        "stage_seconds": {name: round(s, 2) for name, s in sorted(tally.stage_seconds.items())},
        "driver_megabytes": round(megabytes, 1),
        "errors": outcome.errors,
    }


def measure(images: int, part_size: int) -> dict[str, Any]:
    """`run_simulated` over fresh shards, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        write_tiny_bundle(f"{folder}/model")
        write_shards(Path(folder) / "shards", images)
        command = [sys.executable, __file__, "--run", folder, "--part-size", str(part_size)]
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    measured: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", default="1000,100000", help="sizes to run, with commas")
    parser.add_argument("--part-size", type=int, default=256)
    parser.add_argument("--run", metavar="FOLDER", help="run once over a prepared folder")
    arguments = parser.parse_args()
    if arguments.run:
        print(json.dumps(run_simulated(arguments.run, arguments.part_size)))
        return
    print(REGIME)
    runs = []
    for images in map(int, arguments.images.split(",")):
        started = time.monotonic()
        run = measure(images, arguments.part_size)
        runs.append(run)
        print(
            f"{run['images']:>8} images  {run['parts']:>5} parts  "
            f"start {run['start_seconds']:6.1f} s  {run['milliseconds_a_part']:7.1f} ms a part  "
            f"{run['images_per_second']:8.1f} images/s  driver {run['driver_megabytes']:.0f} MB  "
            f"({time.monotonic() - started:.0f} s in all)",
            flush=True,
        )
    growth = runs[-1]["driver_megabytes"] - runs[0]["driver_megabytes"]
    print(
        json.dumps(
            {"benchmark": "engine", "driver_growth_megabytes": round(growth, 1), "runs": runs}
        )
    )


if __name__ == "__main__":
    main()
