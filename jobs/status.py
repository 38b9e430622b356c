"""Print the progress of a table, during a run or after it, from storage alone.

    python jobs/status.py s3://bucket/latents
    python jobs/status.py s3://bucket/latents --json
    watch -n 30 python jobs/status.py s3://bucket/latents

exit code  0 complete   3 not complete   1 storage failed   2 not a table
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from typing import Any

from pipeline.cli import add_place, exit_code_of, job_parser, parse_places
from pipeline.errors import printable
from pipeline.table.status import Status, seconds_since, table_status

NOT_COMPLETE = 3
_ENDS = {0: "done", 1: "failed", 2: "refused"}


def clock(seconds: float | None) -> str:
    """Return `75` as `0:01:15`, and None as `?`."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def describe_run(run: dict[str, Any], *, is_active: bool) -> str:
    """Return one line: what a run did, how it ended and when its record was last written."""
    code, ago = run["exit_code"], clock(seconds_since(run["updated"]))
    silent = "running or crashed" if is_active else "presumably crashed (no final record)"
    state = f"{_ENDS.get(code, 'ended')}, exit code {code}" if code is not None else silent
    if code == 1 and not run["errors"]:
        state = f"stopped before its end, exit code {code}"
    counts = ("samples", "faces", "rejects", "parts")
    done = ", ".join(f"{'?' if run[name] is None else run[name]} {name}" for name in counts)
    return f"{run['run']}: {state}, {done}, {run['errors']} errors, {ago} ago"


def describe_left(status: Status) -> str:
    """Return the time left, or why it is unknown."""
    if status.complete:
        return "nothing"
    if status.at_work:
        return clock(status.seconds_left)
    return "unknown: no run seems to be active; to continue, run the same command again"


def describe_shards(status: Status) -> str:
    """Return how many of the input's shards are committed, and how many others the table has."""
    total, left = status.shards_total, status.shards_left
    if total is None or left is None:
        return f"{status.shards_committed:,} of ? committed"
    committed = min(status.shards_committed, total - left)
    text = f"{committed:,} of {total:,} committed"
    if committed < status.shards_committed:
        others = status.shards_committed - committed
        text += f" (and {others:,} that left the input or changed in it)"
    if left and status.bytes_total and status.bytes_left is not None:
        text += f", {max(0, 100 - 100 * status.bytes_left / status.bytes_total):.1f} % of the bytes"
    return text


def lines(status: Status) -> Iterator[str]:
    """Yield the lines of the status for people."""
    about = "" if status.exact else "about "
    in_open = (
        f", of which {status.samples_open:,}, {status.faces_open:,} and "
        f"{status.rejects_open:,} in open shards"
    )
    yield f"table    {status.table}"
    yield f"shards   {describe_shards(status)}; {status.shards_open:,} open"
    yield f"parts    {status.parts:,}, of these {status.parts_open:,} of open shards"
    yield (
        f"samples  {about}{status.samples:,}; faces {about}{status.faces:,}; "
        f"rejects {about}{status.rejects:,}{in_open if status.parts_open else ''}"
    )
    if status.parts_per_second:
        rate = status.samples_per_second
        images = "" if rate is None else f", {rate:,.1f} samples/s"
        yield (
            f"rate     {status.parts_per_second:.2f} parts/s{images} in the last ten minutes of "
            f"work; the last part {clock(status.seconds_since_last_part)} ago"
        )
    yield f"left     {describe_left(status)}"
    for index, run in enumerate(status.runs):
        yield f"run      {describe_run(run, is_active=status.at_work and index == 0)}"
        if index == 0 and run["first_error"]:
            yield f"error    {printable(run['first_error'])}"
    for began in status.unfinished_forgets:
        yield f"forget   begun {began}, not finished: restyle forget --table {status.table}"


def main(argv: list[str]) -> int:
    """Parse, read, print; return the exit code."""
    parser = job_parser(__doc__, reads_only=True)
    add_place(parser, "table", "--table", metavar="TABLE", text="path or URI of the table")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument(
        "--list-input", action="store_true", help="list the input again and count its shards"
    )
    args = parse_places(parser, argv, "table")
    return exit_code_of(lambda: _show(args), reads_only=True)


def _show(args: argparse.Namespace) -> int:
    status = table_status(args.table, list_input=args.list_input)
    print(json.dumps(status.to_dict()) if args.json else "\n".join(map(printable, lines(status))))
    return 0 if status.complete else NOT_COMPLETE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
