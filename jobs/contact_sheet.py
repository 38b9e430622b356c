"""Draw faces of a latent table, one row per face: target, average face, every step.

    python jobs/contact_sheet.py --table URI --output sheet.png [--where "lpips < 0.2"] [--limit 12]
    python jobs/contact_sheet.py --table URI --output worst.png --order "lpips DESC"

Any table will do: a target that was not kept (--keep-crops) is read from its source and aligned
again, and without kept steps (--keep-steps) the best one is shown. Faces whose source is missing
or has changed have an empty cell, and are counted in the last line. The images are rendered again
from the codes in the table.

exit code  0 done   1 a read or a write failed   2 the request is wrong
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from pipeline.cli import add_selection, job_parser, print_result
from pipeline.errors import ConfigError, printable
from pipeline.storage import check_outside, file_place
from pipeline.table import open_table
from pipeline.table.model_lookup import check_model_of
from pipeline.table.selection import Selection


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Parse the flags."""
    parser = job_parser(__doc__)
    add_selection(parser, limit=12, order="image_id")
    parser.add_argument("--output", required=True, metavar="PNG", help="path or any fsspec URI")
    parser.add_argument("--title", default="", help="text above the faces")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Parse, check, draw, print one JSON line; return the exit code."""
    args = parse_arguments(argv)
    return print_result(lambda: _draw(args), given_table=True)


def _draw(args: argparse.Namespace) -> dict[str, Any]:
    if not args.output.lower().endswith(".png"):
        raise ConfigError(f"--output {args.output}: the sheet is a PNG, name it *.png")
    check_outside(args.table, args.output)
    selection = Selection(open_table(args.table), args.where, args.order, args.limit)
    check_model_of(selection.table)
    selection.require_rows()
    # PyTorch is slow to import, so the request is checked first.
    from pipeline.reports.table_sheet import table_sheet

    sheet = table_sheet(selection, title=args.title)
    store, name = file_place(args.output)
    store.put(name, sheet.picture)
    print(f"contact sheet: {printable(args.output)}", file=sys.stderr)
    if missing := sheet.targets.summary():
        print(missing, file=sys.stderr)
    no_target = dict(sheet.targets.not_found)
    return {"output": args.output, "faces": sheet.faces, "no_target": no_target}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
