"""Find when a face has had enough steps: choose the rule on one set, report it on another.

    python jobs/calibrate_stop.py --calibrate URI --report URI --output FOLDER [--model demo]

Both inputs are anything that jobs/invert_dataset.py reads, treated as it treats them; --limit
samples are taken from each, spread evenly. The rule has the fewest steps whose mean L2 is within
--tolerance of --like-steps steps for all, on the first set. Writes stop_curve.md, .csv and .png for
the second one and prints one JSON object as its last line, with the rule and, in `flags`, how
jobs/invert_dataset.py is told of it.
Exit code: 0 done, 1 a read or a put failed, 2 the request is wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, get_args

from pipeline.choices import Fit
from pipeline.cli import add_flags, exit_code_of, job_parser, positive
from pipeline.config_loading import ModelFlags, fill
from pipeline.errors import printable
from pipeline.models.domains import treatment_for
from pipeline.models.files import check_model, hints_of
from pipeline.reports.requirements import check_calibration, require_matplotlib
from pipeline.reports.sheets import REPORT_OUTPUT
from pipeline.storage import Store, check_output, list_shards

if TYPE_CHECKING:
    from pipeline.alignment import AlignmentSettings
    from pipeline.models import RestyleModel

# Of the two sets whether they are crops; None: as the model's domain has it.
PREALIGNED = {
    None: (None, None),
    "calibrate": (True, None),
    "report": (None, True),
    "both": (True, True),
    "none": (False, False),
}
GAINS = (1e-5, 3e-5, 1e-4, 2e-4, 3e-4, 5e-4, 7e-4, 1e-3, 1.4e-3, 2e-3, 3e-3, 5e-3, 1e-2)


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """The flags."""
    parser = job_parser(__doc__)
    parser.add_argument("--calibrate", required=True, metavar="URI", help="chooses the rule")
    parser.add_argument("--report", required=True, metavar="URI", help="other faces, to report on")
    parser.add_argument("--output", required=True, metavar="URI", help="folder of the curve")
    parser.add_argument("--model", default="demo", help="a bundle's name or URI, or a .pt file")
    add_flags(parser, ModelFlags)
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
    parser.add_argument("--batch-size", type=positive, default=16, metavar="N", help="faces a pass")
    parser.add_argument(
        "--prealigned",
        choices=[name for name in PREALIGNED if name],
        help="which set is crops already (default: by the model's domain)",
    )
    parser.add_argument("--fit", choices=get_args(Fit), help="how crops are resized")
    return parser.parse_args(argv)


def settings_of(asked: argparse.Namespace, model: RestyleModel) -> list[AlignmentSettings]:
    """How the images of the two sets are treated: as jobs/invert_dataset.py would."""
    from pipeline.alignment import AlignmentSettings

    told = PREALIGNED[asked.prealigned]
    settings = []
    for name, prealigned in zip(("calibrate", "report"), told, strict=True):
        # A way to resize is of crops: where one set is named, not of the other.
        fit = asked.fit if prealigned is not None or not any(told) else None
        treatment = treatment_for(model, prealigned=prealigned, identity="none", fit=fit)
        print(f"{name}: {printable(treatment.description)}", file=sys.stderr)
        settings.append(
            AlignmentSettings(
                output_size=model.input_size, prealigned=treatment.prealigned, fit=treatment.fit
            )
        )
    return settings


def run(asked: argparse.Namespace) -> int:
    """Read, choose on one set, draw the curve of the other."""
    _check(asked)
    # PyTorch is slow to import: what is wrong is told before.
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

    given = {name: getattr(asked, name) for name in ModelFlags.model_fields}
    hints = hints_of(fill(ModelFlags, None, given).model_dump())
    model = load_model(asked.model, ready_device(), **hints)
    settings = settings_of(asked, model)
    ours = read_crops(asked.calibrate, asked.limit, settings[0])
    theirs = read_crops(asked.report, asked.limit, settings[1])
    print(f"{len(ours)} faces to choose on, {len(theirs)} to report on", file=sys.stderr)

    how = {"steps": asked.most, "batch_size": asked.batch_size}
    fitted = calibrate(
        trace(model, ours, **how),
        most=asked.most, like_steps=asked.like_steps, tolerance=asked.tolerance,
    )  # fmt: skip
    seen = trace(model, theirs, **how)
    rule, like = fitted.rule, asked.like_steps
    drawn = StopCurve(seen, seen.with_rule(rule), curve(seen, rule, GAINS), like)
    fixed_s, auto_s = seconds_per_face(model, theirs, rule, like, asked.batch_size)

    store = Store(asked.output)
    for name, content in stop_files(drawn).items():
        store.put(name, content)
    chosen, flags = drawn.chosen, stop_flags(rule)
    record = {
        "gain": rule.gain, "residual": rule.residual, "least": rule.least, "most": rule.most,
        "calibration_steps": fitted.steps, "steps": chosen.steps, "l2": chosen.l2,
        f"l2_of_{like}": seen.with_steps(like).l2, "relative_l2": drawn.relative(chosen),
        "share_of_steps": chosen.steps / like,
        "seconds_fixed": fixed_s, "seconds_auto": auto_s, "flags": flags,
    }  # fmt: skip
    print(f"to stop by this rule: jobs/invert_dataset.py {flags}", file=sys.stderr)
    print(json.dumps(record))
    return 0


def _check(asked: argparse.Namespace) -> None:
    """Raise a `RequestError` for what is wrong with the request, without importing PyTorch."""
    require_matplotlib()
    check_calibration(asked.most, asked.like_steps, asked.tolerance)
    check_output(asked.output, REPORT_OUTPUT)
    check_model(asked.model)
    for uri in (asked.calibrate, asked.report):
        list_shards(uri).first()


def main(argv: list[str]) -> int:
    """Run; the exit code."""
    asked = parse_arguments(argv)
    return exit_code_of(lambda: run(asked))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
