"""Play schedules of faults: `python -m tests.faults --schedules 100`, or one: `--seed 17`.

Prints one line per schedule, a table by kind of fault, and one JSON object as the last line. Exit
code 1 if a guarantee was violated; the line of that schedule has the command that repeats it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.faults.arena import Result
from tests.faults.schedule import KINDS, kind_of, play
from tests.faults.world import shared_world

COUNTS = ("lost", "duplicated", "stray", "different", "leftovers")


def summary_line(result: Result) -> str:
    """Return one line about a schedule; for a failed one with the command that repeats it."""
    findings = result.findings
    line = (
        f"seed {result.seed:4}  {result.kind:22}  {result.when:34}  runs {result.runs}  "
        f"recovery {result.recovery_s:6.1f} s  lost {findings.lost}  "
        f"duplicated {findings.duplicated}  stray {findings.stray}"
    )
    if result.unavailable:
        return f"{line}\n  not played: {result.unavailable}"
    if result.ok:
        return line
    why = result.failure or findings.problem or f"{findings.different} files differ"
    return f"{line}\n  BROKEN: {why}\n  again: python -m tests.faults --seed {result.seed}"


def by_kind(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Return sums over the schedules of each kind."""
    groups: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        groups[result.kind].append(result)
    rows = []
    for kind in (kind.name for kind in KINDS if kind.name in groups):
        group = groups[kind]
        row: dict[str, Any] = {"kind": kind, "schedules": len(group)}
        row["broken"] = sum(not result.ok for result in group)
        row["hangs"] = sum(result.hung for result in group)
        row["most_runs"] = max(result.runs for result in group)
        row["longest_recovery_s"] = round(max(result.recovery_s for result in group), 1)
        row |= {name: sum(getattr(result.findings, name) for result in group) for name in COUNTS}
        rows.append(row)
    return rows


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Print the sums in columns."""
    names = list(rows[0])
    widths = [max(len(str(row[name])) for row in rows) for name in names]
    widths = [max(width, len(name)) for width, name in zip(widths, names, strict=True)]
    for line in ({name: name for name in names}, *rows):
        cells = zip((str(line[name]) for name in names), widths, strict=True)
        print("  ".join(cell.ljust(width) for cell, width in cells).rstrip())


def chosen_seeds(arguments: argparse.Namespace) -> list[int]:
    """Return the given seed, or the first seeds of the selected kinds."""
    if arguments.seed is not None:
        return [arguments.seed]
    seeds: list[int] = []
    seed = arguments.first
    while len(seeds) < arguments.schedules:
        if not arguments.kinds or kind_of(seed).name in arguments.kinds:
            seeds.append(seed)
        seed += 1
    return seeds


def main(argv: Sequence[str]) -> int:
    """Play the schedules; return 1 if one violated a guarantee."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--seed", type=int, help="play this one alone")
    parser.add_argument("--schedules", type=int, default=len(KINDS), metavar="N")
    parser.add_argument("--first", type=int, default=0, metavar="SEED")
    parser.add_argument("--kinds", nargs="+", choices=[kind.name for kind in KINDS])
    arguments = parser.parse_args(argv)
    results: list[Result] = []
    with (
        tempfile.TemporaryDirectory(prefix="faults-") as folder,
        shared_world(Path(folder)) as world,
        suppress(KeyboardInterrupt),  # after Ctrl-C print the table of what was played
    ):
        for seed in chosen_seeds(arguments):
            results.append(play(world, seed))
            print(summary_line(results[-1]), flush=True)
    rows = by_kind(results)
    if rows:
        print()
        print_table(rows)
    broken = [result.seed for result in results if not result.ok]
    totals = {name: sum(row[name] for row in rows) for name in (*COUNTS, "hangs")}
    print(json.dumps({"schedules": len(results), "broken": broken, **totals, "by_kind": rows}))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
