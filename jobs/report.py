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
import json
import sys
from collections.abc import Sequence

from pipeline.cli import add_renderer, add_selection, exit_code_of, job_parser, positive
from pipeline.errors import ConfigError
from pipeline.storage import Store, canonical_uri, check_beside, check_output
from pipeline.table import open_table
from pipeline.table.model_lookup import check_model_of
from pipeline.table.selection import Selection

_DEFAULT_ROWS = 1000


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, check, write the report, print one JSON line; return the exit code."""
    args = _parser().parse_args(arguments)
    return exit_code_of(lambda: _report(args), given_table=True)


def _parser() -> argparse.ArgumentParser:
    parser = job_parser(__doc__)
    add_selection(parser)
    parser.add_argument("--output", required=True, metavar="HTML", help="path or any fsspec URI")
    parser.add_argument(
        "--faces", action="store_true", help="embed pictures of people (default: none)"
    )
    parser.add_argument(
        "--rows",
        type=positive,
        default=_DEFAULT_ROWS,
        metavar="N",
        help="upper bound of faces in the file's table and map",
    )
    parser.add_argument(
        "--duplicates",
        type=_similarity,
        default=0.98,
        metavar="S",
        help="similarity, up to 1, from which faces are listed as similar; 0: do not search",
    )
    add_renderer(parser)
    return parser


def _similarity(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 0 to 1")
    return value


def _report(args: argparse.Namespace) -> int:
    if not args.output.lower().endswith((".html", ".htm")):
        raise ConfigError(f"--output {args.output}: the report is a web page, name it *.html")
    target = canonical_uri(args.output)
    folder, _, name = target.rpartition("/")
    check_beside(
        args.table, target, what="table", why="where nothing may stand but what its jobs write"
    )
    check_output(folder or "/")
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
        data.extreme_ids,
        pictures=args.faces,
        threshold=args.duplicates,
        model_name=args.model,
        device=args.device,
    )
    page = report_html(data, extras).encode()
    Store(folder or "/").put(name, page)
    line = {
        "output": target,
        "faces": data.numbers.faces,
        "rows": len(data.rows),
        "pictures": len(extras.pictures),
        "bytes": len(page),
    }
    print(json.dumps(line))
    return 0


if __name__ == "__main__":
    sys.exit(main())
