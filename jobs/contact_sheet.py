"""Draw faces of a latent table, one row per face: target, average face, every step.

    python jobs/contact_sheet.py --table URI --output sheet.png [--where "lpips < 0.2"] [--limit 12]

The table must have been made with --keep-crops and --keep-steps. The images are rendered again
from the codes in the table.
"""

from __future__ import annotations

import argparse
import sys

from pipeline.cli import exit_code_of, job_parser, positive
from pipeline.errors import ConfigError, printable
from pipeline.reports.requirements import require_crops_and_steps
from pipeline.storage import Store, canonical_uri, check_output
from pipeline.table import open_table
from pipeline.table.model_lookup import check_model_of


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Parse the flags."""
    parser = job_parser(__doc__, reads_only=True)
    parser.add_argument("--table", required=True, metavar="URI", help="the table")
    parser.add_argument("--output", required=True, metavar="PNG", help="path or any fsspec URI")
    parser.add_argument(
        "--where", default="", metavar="SQL", help="condition on rows: which faces (default: all)"
    )
    parser.add_argument(
        "--limit", type=positive, default=12, metavar="N", help="upper bound of faces"
    )
    parser.add_argument("--title", default="", help="text above the faces")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Parse, check, draw, report; return the exit code."""
    arguments = parse_arguments(argv)
    return exit_code_of(lambda: _draw(arguments), reads_only=True)


def _draw(arguments: argparse.Namespace) -> int:
    if not arguments.output.lower().endswith(".png"):
        raise ConfigError(f"--output {arguments.output}: the sheet is a PNG, name it *.png")
    folder, _, name = canonical_uri(arguments.output).rpartition("/")
    check_output(folder or "/")
    table = open_table(arguments.table)
    require_crops_and_steps(table)
    check_model_of(table)
    # PyTorch is slow to import, so the request is checked first.
    from pipeline.reports.table_sheet import table_sheet

    picture = table_sheet(
        table, where=arguments.where, limit=arguments.limit, title=arguments.title
    )
    Store(folder or "/").put(name, picture)
    print(f"contact sheet: {printable(arguments.output)}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
