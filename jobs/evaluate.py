"""Compare tables over the same faces: quality, cost, and what each step changes.

    python jobs/evaluate.py --table URI --table URI --output FOLDER
    python jobs/evaluate.py --table URI --output FOLDER --ground-truth PAIRS --coarse-to-fine

Writes comparison.md, CSV files and plots. Means come with 95 % intervals, differences to the
first table are taken face by face.

exit code  0 done   1 a read or a write failed
           2 the tables do not compare, or the request is wrong
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from pipeline.cli import add_count, exit_code_of, job_parser
from pipeline.errors import printable
from pipeline.reports.requirements import ComparisonOptions, check_comparison
from pipeline.reports.sheets import REPORT_NAME, REPORT_OUTPUT
from pipeline.storage import check_outside
from pipeline.table import open_table
from pipeline.table.model_lookup import check_model_of


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the flags."""
    parser = job_parser(__doc__, reads_only=True)
    parser.add_argument(
        "--table", required=True, action="append", metavar="URI", help="a table; repeat for each"
    )
    parser.add_argument(
        "--label", action="append", default=[], metavar="TEXT", help="name of a table, in order"
    )
    parser.add_argument("--output", required=True, metavar="URI", help="folder of the report")
    parser.add_argument(
        "--common", action="store_true", help="compare the faces that every table holds"
    )
    parser.add_argument(
        "--ground-truth",
        metavar="PAIRS",
        help="the tables' input, tars of <key>.jpg and <key>.w.npy: distance to the true codes",
    )
    parser.add_argument(
        "--coarse-to-fine",
        action="store_true",
        help="what each step changes; needs tables made with --keep-steps",
    )
    add_count(parser, "--images", "faces rendered for image frequencies", 100)
    parser.add_argument(
        "--plots", action=argparse.BooleanOptionalAction, default=True, help="draw PNG plots"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, check, compare, report; return the exit code."""
    args = parse_arguments(arguments)
    return exit_code_of(lambda: _compare(args), reads_only=True)


def _compare(args: argparse.Namespace) -> int:
    for uri in args.table:
        check_outside(uri, args.output, REPORT_OUTPUT)
    tables = [open_table(uri) for uri in args.table]
    options = ComparisonOptions(
        labels=args.label,
        common=args.common,
        ground_truth=args.ground_truth,
        coarse_to_fine=args.coarse_to_fine,
        images=args.images,
        plots=args.plots,
    )
    check_comparison(tables, options)
    if args.coarse_to_fine:  # renders the codes
        for table in tables:
            check_model_of(table)
    # PyTorch is slow to import, so the request is checked first.
    from pipeline.inversion import ready_device
    from pipeline.reports.comparison_report import compare_tables

    report = compare_tables(tables, options, ready_device())
    report.write(args.output)
    print("\n".join(map(printable, report.headline.split("\n"))))
    print(f"report: {printable(args.output.rstrip('/'))}/{REPORT_NAME}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
