"""Fit a direction of the codes to labels of a table's faces, and score it on faces held out.

    python jobs/fit_direction.py --table URI --column yaw --output yaw.safetensors
    python jobs/fit_direction.py --table URI --labels file.csv --column smile --output s.safetensors
    python jobs/fit_direction.py --table URI --where A --against B --output ab.safetensors

The label is a column of the table or any SQL expression of one face (numbers, or a condition as in
--column "yaw > 0.1"), a column of a CSV or Parquet file that has image_id or key, or 1 for the
faces of --where and 0 for those of --against.

Methods: ridge (of numbers; the default), logistic (of two classes; the default), and mean, the
difference of the two classes' means, of numbers the codes' covariance with them. Penalties are
chosen by cross-validation. --orthogonal-to takes the parts along other directions out.

The score is of a fit without a fifth of the faces; --split-by keeps those of one person or shard
together. The direction is then fitted to all. The file has the direction and its model, and stands
beside its card, NAME.md and NAME.json. Strength 1 is one unit of length per row of a code.

exit code  0 done   1 a read or a write failed, run again   2 the request is wrong
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any, get_args

from pipeline.choices import Space
from pipeline.cli import add_selection, job_parser, number, print_result
from pipeline.editing.direction_fit import FitSettings, Method, fit_direction
from pipeline.editing.labels import SPLIT_BY, Labels
from pipeline.errors import ConfigError, printable
from pipeline.redaction import finite
from pipeline.storage import check_outside, file_place
from pipeline.table import open_table
from pipeline.table.model_lookup import check_model_of, model_of
from pipeline.table.selection import Selection

SUFFIX = ".safetensors"


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, check, fit, print one JSON line; return the exit code."""
    args = _parser().parse_args(arguments)
    return print_result(lambda: _fit(args), given_table=True)


def _parser() -> argparse.ArgumentParser:
    parser = job_parser(__doc__)
    add_selection(parser)
    parser.add_argument(
        "--column", default="", metavar="SQL", help="label: a column, an expression, a condition"
    )
    parser.add_argument(
        "--labels", default="", metavar="FILE", help="CSV or .parquet file with the column"
    )
    parser.add_argument(
        "--positive", default="", metavar="TEXT", help="text of --labels that counts as 1"
    )
    parser.add_argument(
        "--against", default="", metavar="SQL", help="condition of the faces opposite to --where"
    )
    parser.add_argument("--output", required=True, metavar="FILE", help=f"NAME{SUFFIX}")
    parser.add_argument(
        "--method", choices=get_args(Method), help="(default: ridge, logistic for classes)"
    )
    parser.add_argument(
        "--space",
        choices=get_args(Space),
        default="w",
        help="w: one row for all; w+: a row for each",
    )
    parser.add_argument(
        "--penalty",
        type=number("a number above 0", lambda value: 0 < value < 1e12),
        metavar="N",
        help="of ridge and logistic (default: by data)",
    )
    parser.add_argument(
        "--orthogonal-to",
        action="append",
        default=[],
        metavar="NAME|FILE",
        help="direction to leave out; again for another",
    )
    parser.add_argument(
        "--split-by",
        default=SPLIT_BY,
        metavar="SQL",
        help="faces of one value are held out together (default: copies of one photo)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the split")
    parser.add_argument("--model", help="model of the codes (default: the table's own)")
    return parser


def _fit(args: argparse.Namespace) -> dict[str, Any]:
    name = _check_output(args)
    table = open_table(args.table)
    labels = Labels(
        Selection(table, args.where, args.order, args.limit),
        args.column,
        args.labels,
        args.positive,
        args.against,
        args.split_by,
        args.seed,
    )
    labels.check()
    check_model_of(table, args.model)
    # PyTorch is slow to import, so the request is checked first.
    from pipeline.editing.direction_card import card_of, card_text
    from pipeline.editing.directions import Direction, read_direction, save_direction
    from pipeline.editing.w_space import w_space_of

    others = tuple(read_direction(text) for text in args.orthogonal_to)
    settings = FitSettings(args.method, args.space, args.penalty, others)
    model = model_of(table, args.model)
    space = w_space_of(model)
    notes = [note for other in others if (note := other.check_model(space))]
    fit = fit_direction(labels, settings, model.latent_avg.double().cpu().numpy())
    facts = card_of(labels, settings, fit)
    direction = Direction(name, fit.rows.astype("f4"), space, facts)
    store, _ = file_place(args.output)
    record = json.dumps(finite({"name": name, **facts}), indent=2, allow_nan=False)
    store.put(f"{name}.json", f"{record}\n".encode())
    store.put(f"{name}.md", card_text(name, space, facts).encode())
    store.put(f"{name}{SUFFIX}", save_direction(direction))
    for note in notes:
        print(printable(note), file=sys.stderr)
    card = store.uri(f"{name}.md")
    return {"output": args.output, "card": card, **facts, "notes": notes}


def _check_output(args: argparse.Namespace) -> str:
    """Return the direction's name: that of the file without its suffix."""
    path = PurePosixPath(args.output)
    if path.suffix != SUFFIX or not path.stem.isprintable():
        raise ConfigError(f"--output {args.output}: a direction is one file: name it NAME{SUFFIX}")
    check_outside(args.table, args.output)
    return path.stem


if __name__ == "__main__":
    sys.exit(main())
