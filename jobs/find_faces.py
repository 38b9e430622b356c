"""Find faces of a table that are alike: neighbours, duplicates, clusters.

    python jobs/find_faces.py --table URI --like IMAGE_ID|PHOTO [IMAGE_ID|PHOTO ...] -k 10
    python jobs/find_faces.py --table URI --duplicates 0.95 [--approximate] [--output pairs.csv]
    python jobs/find_faces.py --table URI --clusters 20 --output clusters.parquet

--like: the most similar faces of each id of the table or photo; a photo, path or URI, is aligned
and embedded as the table's faces were. --duplicates: groups that pairs of at least this similarity
connect; with --approximate some may be missed, in a fraction of the time from 10^5 faces on.
--clusters: k-means. By identity, the default where the table has that column, persons are compared;
by w_plus codes are. --where, --order and --limit choose the faces that are compared. Rows go into
--output, the first ones to stderr; the last line of stdout is JSON.

exit code  0 done   1 a read or a write failed   2 the request is wrong
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, get_args

from pipeline.choices import SearchBy
from pipeline.cli import add_device, add_selection, job_parser, number, positive, print_result
from pipeline.errors import ConfigError
from pipeline.search.requests import check_by, check_threshold, default_by, require_faiss
from pipeline.search.row_files import check_row_file
from pipeline.table import open_table
from pipeline.table.selection import Selection

if TYPE_CHECKING:
    from pipeline.search.reports import Findings

_MOST_PRINTED = 1000  # neighbours in the JSON line


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, check, search, print one JSON line; return the exit code."""
    args = _parser().parse_args(arguments)
    return print_result(lambda: _find(args), given_table=True)


def _parser() -> argparse.ArgumentParser:
    parser = job_parser(__doc__)
    add_selection(parser)
    kinds = parser.add_mutually_exclusive_group(required=True)
    kinds.add_argument("--like", nargs="+", metavar="ID|PHOTO", help="find faces similar to these")
    kinds.add_argument(
        "--duplicates", type=number(), metavar="X", help="find groups of at least this similarity"
    )
    kinds.add_argument("--clusters", type=positive, metavar="N", help="sort faces into N clusters")
    parser.add_argument(
        "-k", "--neighbours", type=positive, default=10, metavar="N", help="faces per --like"
    )
    parser.add_argument(
        "--by",
        choices=get_args(SearchBy),
        help="what is compared (default: identity if the table has it, else w_plus)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of the first centres of --clusters"
    )
    add_device(parser, "device that compares", "auto")
    parser.add_argument(
        "--approximate",
        action="store_true",
        help="--duplicates by faiss's inverted file, which may miss pairs",
    )
    parser.add_argument("--output", metavar="URI", help="CSV or Parquet file of all rows")
    return parser


def _find(args: argparse.Namespace) -> dict[str, Any]:
    selection, by = _checked(args)
    # PyTorch is slow to import, so the request is checked first.
    from pipeline.search.row_files import write_rows

    findings = _search(args, selection, by)
    for line in findings.lines:
        print(line, file=sys.stderr)
    facts: dict[str, Any] = {"table": args.table, "by": by, **findings.facts}
    if args.output:
        write_rows(args.output, findings.schema, findings.batches())
        facts["output"] = args.output
    return facts


def _checked(args: argparse.Namespace) -> tuple[Selection, SearchBy]:
    if args.duplicates is not None:
        check_threshold(args.duplicates)
    if args.approximate:
        if args.duplicates is None:
            raise ConfigError("--approximate is for --duplicates: the other searches are exact")
        require_faiss()
    if args.output:
        check_row_file(args.output, args.table)
    if args.like and len(args.like) * args.neighbours > _MOST_PRINTED and not args.output:
        raise ConfigError(
            f"{len(args.like)} × {args.neighbours} neighbours are too many to print: name a file "
            "with --output"
        )
    table = open_table(args.table)
    by: SearchBy = args.by or default_by(table)
    check_by(table, by)
    selection = Selection(table, args.where, args.order, args.limit)
    selection.require_rows()
    return selection, by


def _search(args: argparse.Namespace, selection: Selection, by: SearchBy) -> Findings:
    from pipeline.inversion import ready_device
    from pipeline.search import reports
    from pipeline.search.vectors import HELD_BYTES, Vectors

    device = ready_device(args.device)
    # One pass needs no vectors in memory, unlike the other searches.
    vectors = Vectors(selection, by, device, held_bytes=0 if args.like else HELD_BYTES)
    if args.like:
        from pipeline.engine.photos import queries_of

        names, queries = queries_of(vectors, args.like, args.device)
        return reports.of_neighbours(vectors, names, queries, args.neighbours)
    if args.clusters:
        return reports.of_clusters(vectors, args.clusters, args.seed)
    return reports.of_duplicates(vectors, args.duplicates, approximate=args.approximate)


if __name__ == "__main__":
    sys.exit(main())
