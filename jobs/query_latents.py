r"""Run a SQL query over a table of latents.

    python jobs/query_latents.py TABLE "SELECT image_id, l2 FROM latents ORDER BY l2 LIMIT 10"

Views: latents (one row per face), rejects (one row per reject), shards (one row per input shard),
runs (one row per run, with its seconds). --with adds a file of your own as a further view:

    python jobs/query_latents.py TABLE --with labels=labels.csv \
        "SELECT smile, avg(l2) FROM latents JOIN labels USING (key) GROUP BY smile"

A query reads the table and these files only: no other file, no network, and it writes nothing.
On a terminal, control characters in names and values are shown as `\x1b`, `\n`; into a file or a
pipe, --csv writes the values as they are, in quotes where they need it. A spreadsheet takes a value
that begins with =, +, - or @ for a formula: import such a file as text.

exit code  0 done   1 a read failed   2 the table or the query is wrong
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import sys
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from pipeline.cli import add_place, exit_code_of, job_parser, parse_places
from pipeline.errors import ConfigError, printable
from pipeline.redaction import finite
from pipeline.table import open_table
from pipeline.table.frames import read_frame
from pipeline.table.reader import as_python
from pipeline.table.statements import check_frame_names

_LONGEST_LIST = 8
_NARROWEST_COLUMN = 12


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, run the query, print its rows; return the exit code."""
    args = parse_places(_parser(), arguments, "table")
    return exit_code_of(lambda: _answer(args), reads_only=True)


def _answer(args: argparse.Namespace) -> int:
    table = open_table(args.table)
    rows = table.arrow(args.query, **read_frames(args.frames))
    try:
        _show(rows, args)
    except BrokenPipeError:  # `| head` has ended
        sys.stderr.close()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = job_parser(__doc__, reads_only=True)
    add_place(parser, "table", "--table", metavar="TABLE", text="path or URI of the table")
    parser.add_argument(
        "query", metavar="SQL", help="over the views latents, rejects, shards and runs"
    )
    parser.add_argument(
        "--with",
        dest="frames",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="a .csv, .tsv, .jsonl or .parquet file, path or URI, as a view; may be repeated",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--csv", action="store_true", help="comma-separated, with a header line")
    form.add_argument("--json", action="store_true", help="one JSON object per line")
    return parser


def read_frames(given: Sequence[str]) -> dict[str, pa.Table]:
    """Read the files of --with, each by its name; `ConfigError` for a wrong flag."""
    places: dict[str, str] = {}
    for text in given:
        name, equals, uri = text.partition("=")
        if not equals or not uri:
            raise ConfigError(f"--with {text}: give a name and a file, as in labels=labels.csv")
        if name in places or name in ("self", "query"):
            raise ConfigError(f"--with {text}: the name '{name}' is taken: choose another name")
        places[name] = uri
    check_frame_names(places)
    return {name: read_frame(uri) for name, uri in places.items()}


def _show(rows: pa.Table, args: argparse.Namespace) -> None:
    # Values out of Arrow keep a null inside a list, for which a pandas frame has no value.
    names = _distinct(rows.column_names)
    columns = as_python(rows, lambda: [column.to_pylist() for column in rows.columns])
    lines = list(zip(*columns, strict=True))
    if args.json:
        for line in lines:
            print(_json(dict(zip(names, line, strict=True))))
    elif args.csv:
        sheet = csv.writer(sys.stdout, lineterminator="\n")
        sheet.writerow(map(_field, names))
        sheet.writerows([_field(value) for value in line] for line in lines)
    else:
        _draw(names, lines)
    sys.stdout.flush()


def _distinct(names: Sequence[str]) -> list[str]:
    """Return `names` with a number after each repetition: a join has the columns of both sides."""
    taken: list[str] = []
    for name in names:
        numbered = (f"{name}_{number}" for number in itertools.count(1))
        taken.append(next(n for n in itertools.chain([name], numbered) if n not in taken))
    return taken


def _draw(names: list[str], rows: list[tuple[Any, ...]]) -> None:
    """Print one grid or, where columns would be too narrow to read, one grid per row."""
    # Into a file or a pipe a line may be as long as it is.
    console = Console(width=None if sys.stdout.isatty() else 10_000)
    if len(names) * _NARROWEST_COLUMN <= console.width:
        grid = Grid(*(escape(printable(name)) for name in names))
        for row in rows:
            grid.add_row(*(escape(_cell(value)) for value in row))
        console.print(grid)
        return
    for row in rows:
        record = Grid(show_header=False)
        for name, value in zip(names, row, strict=True):
            record.add_row(escape(printable(name)), escape(_cell(value)))
        console.print(record)


def _field(value: Any) -> Any:
    """Return lists as JSON, other values as they are; on a terminal texts in one printable line."""
    if isinstance(value, list | dict):
        return _json(value)
    return printable(value) if isinstance(value, str) and sys.stdout.isatty() else value


def _json(value: Any) -> str:
    # The PSNR of equal images is infinite.
    return json.dumps(finite(value), default=_text, allow_nan=False)


def _text(value: Any) -> str:
    """Return bytes and times as texts, since JSON lacks them."""
    return value.hex() if isinstance(value, bytes) else str(value)


def _cell(value: Any) -> str:
    """Return a value as a text that is short enough for a screen."""
    if isinstance(value, list):
        if value and isinstance(value[0], list):
            return f"{len(value)}×{len(value[0])} numbers"
        if len(value) > _LONGEST_LIST:
            return f"{len(value)} values"
        return "[" + ", ".join(_cell(item) for item in value) + "]"
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else printable(str(value))


if __name__ == "__main__":
    sys.exit(main())
