"""Find when a face has had enough steps: choose the rule on one set, report it on another.

    python jobs/calibrate_stop.py --calibrate URI --report URI --output FOLDER [--model demo]

Both inputs are anything that jobs/invert_dataset.py reads; --limit samples are taken from each,
spread evenly. The rule has the fewest steps whose mean L2 is within --tolerance of --like-steps
steps for all, on the first set. Writes stop_curve.md, .csv and .png for the second one and prints
one JSON object, with the rule's bounds, as its last line.
Exit code: 0 done, 1 a read or a put failed, 2 the request is wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.alignment import Aligner, AlignmentSettings
from pipeline.command_line import exit_code_of, job_parser, positive
from pipeline.errors import InputError
from pipeline.images import Rejection
from pipeline.inversion import StopRule, invert, invert_adaptively
from pipeline.models import RestyleModel, load_model
from pipeline.reports.stop_calibration import calibrate, curve, trace
from pipeline.reports.stop_report import (
    StopCurve,
    stop_csv,
    stop_flags,
    stop_markdown,
    stop_plot,
)
from pipeline.storage import check_output, list_shards, read_samples

GAINS = (1e-5, 3e-5, 1e-4, 2e-4, 3e-4, 5e-4, 7e-4, 1e-3, 1.4e-3, 2e-3, 3e-3, 5e-3, 1e-2)


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """The flags."""
    parser = job_parser(__doc__)
    parser.add_argument("--calibrate", required=True, metavar="URI", help="chooses the rule")
    parser.add_argument("--report", required=True, metavar="URI", help="other faces, to report on")
    parser.add_argument("--output", required=True, type=Path, metavar="FOLDER")
    parser.add_argument("--model", default="demo", help="a bundle's name or URI, or a .pt file")
    parser.add_argument(
        "--limit", type=positive, default=100, metavar="N", help="samples of each set"
    )
    parser.add_argument(
        "--like-steps", type=positive, default=5, metavar="N", help="to be as good as"
    )
    parser.add_argument(
        "--most", type=positive, default=10, metavar="N", help="steps of the longest"
    )
    parser.add_argument("--tolerance", type=float, default=0.01, help="of L2, when calibrating")
    parser.add_argument("--batch-size", type=positive, default=16, metavar="N")
    parser.add_argument(
        "--prealigned", choices=("calibrate", "report", "both"), help="which set is crops already"
    )
    return parser.parse_args(argv)


def read_faces(uri: str, limit: int, model: RestyleModel, prealigned: bool) -> Tensor:
    """Up to `limit` aligned faces of an input, [n, 3, h, w] in [-1, 1]; rejects are left out."""
    samples = [sample for shard in list_shards(uri) for sample in read_samples(shard)]
    chosen = np.linspace(0, len(samples) - 1, min(limit, len(samples))).astype(int)
    aligner = Aligner(AlignmentSettings(output_size=model.input_size, prealigned=prealigned))
    crops = []
    for index in chosen:
        try:
            crops.append(aligner.align(samples[index].content)[0].pixels)
        except Rejection as rejection:
            print(f"left out: {samples[index].key}: {rejection}", file=sys.stderr)
    if not crops:
        raise InputError(f"'{uri}' has no face to calibrate on")
    pixels = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)
    return pixels.float().div(255).sub(0.5).div(0.5)


def clock(model: RestyleModel) -> float:
    """Seconds at which all that was asked of the model's device is done: CUDA answers before."""
    if model.latent_avg.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds_a_face(
    model: RestyleModel, faces: Tensor, rule: StopRule, like: int, batch: int
) -> tuple[float, float]:
    """Wall-clock of the fixed and of the adaptive loop, the latter over all faces as one part."""
    begun = clock(model)
    for few in faces.split(batch):
        invert(model, few, steps=like)
    between = clock(model)
    invert_adaptively(model, faces, rule, batch_size=batch, full_size=False)
    ended = clock(model)
    return (between - begun) / len(faces), (ended - between) / len(faces)


def run(asked: argparse.Namespace) -> int:
    """Read, choose on one set, draw the curve of the other."""
    check_output(str(asked.output))
    model = load_model(asked.model, "cuda" if torch.cuda.is_available() else "cpu")
    aligned = asked.prealigned in ("calibrate", "both"), asked.prealigned in ("report", "both")
    ours = read_faces(asked.calibrate, asked.limit, model, aligned[0])
    theirs = read_faces(asked.report, asked.limit, model, aligned[1])
    print(f"{len(ours)} faces to choose on, {len(theirs)} to report on", file=sys.stderr)

    how = {"steps": asked.most, "batch_size": asked.batch_size}
    fitted = calibrate(
        trace(model, ours, **how),
        most=asked.most, like_steps=asked.like_steps, tolerance=asked.tolerance,
    )  # fmt: skip
    seen = trace(model, theirs, **how)
    drawn = StopCurve(
        seen, seen.tried(fitted.rule), curve(seen, fitted.rule, GAINS), asked.like_steps
    )
    fixed_s, auto_s = seconds_a_face(model, theirs, fitted.rule, asked.like_steps, asked.batch_size)

    asked.output.mkdir(parents=True, exist_ok=True)
    (asked.output / "stop_curve.md").write_text(stop_markdown(drawn))
    (asked.output / "stop_curve.csv").write_text(stop_csv(drawn))
    (asked.output / "stop_curve.png").write_bytes(stop_plot(drawn))
    rule, chosen = fitted.rule, drawn.chosen
    record = {
        "gain": rule.gain, "residual": rule.residual, "least": rule.least, "most": rule.most,
        "calibration_steps": fitted.steps, "steps": chosen.steps, "l2": chosen.l2,
        f"l2_of_{asked.like_steps}": seen.fixed(asked.like_steps).l2,
        "relative_l2": drawn.relative(chosen), "share_of_steps": chosen.steps / asked.like_steps,
        "seconds_fixed": fixed_s, "seconds_auto": auto_s, "flags": stop_flags(rule),
    }  # fmt: skip
    print(f"to stop by this rule: jobs/invert_dataset.py {stop_flags(rule)}", file=sys.stderr)
    print(json.dumps(record))
    return 0


def main(argv: list[str]) -> int:
    """Run; the exit code."""
    asked = parse_arguments(argv)
    return exit_code_of(lambda: run(asked))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
