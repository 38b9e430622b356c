"""Write the report of a table: one HTML file that needs no network.

    python jobs/report.py --table URI --output report.html
    python jobs/report.py --table URI --output report.html --faces [--where "lpips > 0.3"]

It has the rejects by reason, histograms of every metric, curves per step, quality by size, yaw and
sharpness, the best and worst faces, a map of the codes, duplicates, and a table of faces to sort
and filter. Pictures of people are embedded only with --faces: the targets, which are kept crops or
are cut from their sources again, and the reconstructions. Rows are aggregated while they are read;
the file has at most --rows of them.

exit code  0 done   1 a read or a write failed   2 the request is wrong
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from pipeline.cli import (
    add_count,
    add_renderer,
    add_selection,
    job_parser,
    number,
    print_result,
)
from pipeline.errors import ConfigError
from pipeline.reports.face_sample import DEFAULT_ROWS
from pipeline.storage import check_outside, file_place
from pipeline.table import open_table
from pipeline.table.model_lookup import check_model_of
from pipeline.table.selection import Selection


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, check, write the report, print one JSON line; return the exit code."""
    args = _parser().parse_args(arguments)
    return print_result(lambda: _report(args), given_table=True)


def _parser() -> argparse.ArgumentParser:
    parser = job_parser(__doc__)
    add_selection(parser)
    parser.add_argument("--output", required=True, metavar="HTML", help="path or any fsspec URI")
    parser.add_argument(
        "--faces", action="store_true", help="embed pictures of people (default: none)"
    )
    add_count(parser, "--rows", "upper bound of faces in the file's table and map", DEFAULT_ROWS)
    parser.add_argument(
        "--duplicates",
        type=number("a number from 0 to 1", lambda value: 0 <= value <= 1),
        default=0.98,
        metavar="S",
        help="similarity, up to 1, from which faces are listed as similar; 0: do not search",
    )
    add_renderer(parser)
    return parser


def _report(args: argparse.Namespace) -> dict[str, Any]:
    if not args.output.lower().endswith((".html", ".htm")):
        raise ConfigError(f"--output {args.output}: the report is a web page, name it *.html")
    check_outside(args.table, args.output)
    selection = Selection(open_table(args.table), args.where, args.order, args.limit)
    if args.faces:
        check_model_of(selection.table, args.model)
    # jinja2, and PyTorch for pictures, are slow to import, so the request is checked first.
    from pipeline.reports.report_extras import report_extras
    from pipeline.reports.table_report import read_report_data, report_html

    data = read_report_data(selection, args.rows)
    extras = report_extras(
        selection,
        data.numbers.faces,
        data.pictured_ids,
        pictures=args.faces,
        threshold=args.duplicates,
        model_name=args.model,
        device=args.device,
    )
    page = report_html(data, extras).encode()
    store, name = file_place(args.output)
    store.put(name, page)
    return {
        "output": store.uri(name),
        "faces": data.numbers.faces,
        "rows": len(data.rows),
        "pictures": len(extras.pictures),
        "bytes": len(page),
    }


if __name__ == "__main__":
    sys.exit(main())
