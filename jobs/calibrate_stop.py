"""Calibrate --steps auto: choose its stop rule on one set, report it on another.

    python jobs/calibrate_stop.py --calibrate URI --report URI --output FOLDER [--model demo]

Both inputs are anything that jobs/invert_dataset.py reads, treated as it treats them; --limit
samples are taken from each, spread evenly. The rule has the fewest steps whose mean L2 is within
--tolerance of --like-steps steps for all, on the first set. Writes stop_curve.md, .csv and .png for
the second one and prints one JSON object as its last line, with the rule and, in `flags`, the flags
of jobs/invert_dataset.py for it.

exit code  0 done   1 a read or a write failed   2 the request is wrong
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any, get_args

from pipeline.choices import Fit
from pipeline.cli import add_count, add_flags, job_parser, print_result
from pipeline.config import MODEL_SETTINGS, JobConfig, fill_part
from pipeline.errors import printable
from pipeline.models.domains import treatment_for
from pipeline.models.files import check_model, hints_of
from pipeline.reports.requirements import check_calibration, require_matplotlib
from pipeline.reports.sheets import REPORT_OUTPUT
from pipeline.storage import Store, check_output, list_shards

if TYPE_CHECKING:
    from pipeline.alignment import AlignmentSettings
    from pipeline.models import RestyleModel

# Whether each of the two sets holds crops; None: as the model's domain has it.
PREALIGNED = {
    None: (None, None),
    "calibrate": (True, None),
    "report": (None, True),
    "both": (True, True),
    "none": (False, False),
}
GAINS = (1e-5, 3e-5, 1e-4, 2e-4, 3e-4, 5e-4, 7e-4, 1e-3, 1.4e-3, 2e-3, 3e-3, 5e-3, 1e-2)


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Parse the flags."""
    parser = job_parser(__doc__)
    parser.add_argument(
        "--calibrate", required=True, metavar="URI", help="images to choose the rule on"
    )
    parser.add_argument("--report", required=True, metavar="URI", help="other images, to report on")
    parser.add_argument("--output", required=True, metavar="URI", help="folder of the curve")
    parser.add_argument("--model", default="demo", help="a bundle's name or URI, or a .pt file")
    add_flags(parser, JobConfig, MODEL_SETTINGS)
    add_count(parser, "--limit", "samples of each set", 100)
    add_count(parser, "--like-steps", "fixed steps whose L2 is the aim", 5)
    add_count(parser, "--most", "upper bound of steps", 10)
    parser.add_argument(
        "--tolerance", type=float, default=0.01, help="relative loss of L2 that is allowed"
    )
    add_count(parser, "--batch-size", "faces per pass", 16)
    parser.add_argument(
        "--prealigned",
        choices=[name for name in PREALIGNED if name],
        help="which set holds crops (default: by the model's domain)",
    )
    parser.add_argument("--fit", choices=get_args(Fit), help="how crops are resized")
    return parser.parse_args(argv)


def settings_of(args: argparse.Namespace, model: RestyleModel) -> list[AlignmentSettings]:
    """Return the settings of the two sets, as jobs/invert_dataset.py would choose them."""
    from pipeline.alignment import AlignmentSettings

    are_crops = PREALIGNED[args.prealigned]
    settings = []
    for name, prealigned in zip(("calibrate", "report"), are_crops, strict=True):
        # --fit is for crops only: where one set is named, not for the other.
        fit = args.fit if prealigned is not None or not any(are_crops) else None
        treatment = treatment_for(model, prealigned=prealigned, identity="none", fit=fit)
        print(f"{name}: {printable(treatment.description)}", file=sys.stderr)
        settings.append(
            AlignmentSettings(
                output_size=model.input_size, prealigned=treatment.prealigned, fit=treatment.fit
            )
        )
    return settings


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Check, read both sets, choose the rule on one, write the curve of the other."""
    _check(args)
    # PyTorch is slow to import, so the request is checked first.
    from pipeline.inversion import ready_device
    from pipeline.models import load_model
    from pipeline.reports.stop_calibration import (
        calibrate,
        curve,
        read_crops,
        seconds_per_face,
        trace,
    )
    from pipeline.reports.stop_report import StopCurve, stop_files, stop_flags

    hints = hints_of(fill_part(MODEL_SETTINGS, vars(args)).model_dump())
    model = load_model(args.model, ready_device(), **hints)
    settings = settings_of(args, model)
    ours = read_crops(args.calibrate, args.limit, settings[0])
    theirs = read_crops(args.report, args.limit, settings[1])
    print(f"{len(ours)} faces to choose on, {len(theirs)} to report on", file=sys.stderr)

    how = {"steps": args.most, "batch_size": args.batch_size}
    fitted = calibrate(
        trace(model, ours, **how),
        most=args.most, like_steps=args.like_steps, tolerance=args.tolerance,
    )  # fmt: skip
    traced = trace(model, theirs, **how)
    rule, like = fitted.rule, args.like_steps
    points = curve(traced, rule, GAINS)
    drawn = StopCurve(traced, traced.with_rule(rule), points, like, args.tolerance)
    fixed_s, auto_s = seconds_per_face(model, theirs, rule, like, args.batch_size)

    store = Store(args.output)
    for name, content in stop_files(drawn).items():
        store.put(name, content)
    chosen, flags = drawn.chosen, stop_flags(rule)
    record = {
        **rule.to_dict(),
        "calibration_steps": fitted.steps, "steps": chosen.steps, "l2": chosen.l2,
        f"l2_of_{like}": traced.with_steps(like).l2, "relative_l2": drawn.relative(chosen),
        "share_of_steps": chosen.steps / like,
        "seconds_fixed": fixed_s, "seconds_auto": auto_s, "flags": flags,
    }  # fmt: skip
    print(f"to stop by this rule: jobs/invert_dataset.py {flags}", file=sys.stderr)
    return record


def _check(args: argparse.Namespace) -> None:
    """Raise a `RequestError` for a wrong request, without importing PyTorch."""
    require_matplotlib()
    check_calibration(args.most, args.like_steps, args.tolerance)
    check_output(args.output, REPORT_OUTPUT)
    check_model(args.model)
    for uri in (args.calibrate, args.report):
        list_shards(uri).first()


def main(argv: list[str]) -> int:
    """Parse, check, run, report; return the exit code."""
    args = parse_arguments(argv)
    return print_result(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
