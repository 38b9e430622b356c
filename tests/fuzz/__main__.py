"""Feed the pipeline with bad input: `python -m tests.fuzz --count N [--seed S] [--only KIND]`.

Each case must end as a row, a reject with its reason, or one clear error, within its limits of time
and memory, and without a file outside its folder. Case i of a kind has the seed S + i, so that one
command repeats it. The last line of stdout is one JSON object; exit code 1 if there is a finding,
whose files are then below --keep.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tests.fuzz.catalogue import KINDS, plan
from tests.fuzz.driver import Tally, fuzz


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Parse the flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--count", type=int, default=3000, help="total number of cases (default 3000)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the first case (default 0)")
    parser.add_argument("--only", choices=sorted(KINDS), help="run only this kind")
    parser.add_argument(
        "--keep", type=Path, default=Path("fuzz-findings"), help="folder for findings"
    )
    return parser.parse_args(argv)


def report(tallies: dict[str, Tally]) -> None:
    """Print one line per kind and one line per finding."""
    print(f"{'kind':<12}{'cases':>8}{'max MiB':>10}{'seconds':>9}  outcomes")
    for name, tally in tallies.items():
        outcomes = ", ".join(f"{what} {n}" for what, n in tally.outcomes.most_common())
        cases = tally.outcomes.total()
        print(f"{name:<12}{cases:>8}{tally.most_mib:>10}{tally.seconds:>9.1f}  {outcomes}")
        for answer in tally.findings[:20]:
            print(f"  FINDING {name} seed {answer.seed}: {answer.finding}")


def main(argv: list[str]) -> int:
    """Plan and run the cases, print the report, and return the exit code."""
    arguments = parse_arguments(argv)
    planned = plan(arguments.count, arguments.seed, arguments.only)
    tallies = fuzz(planned, arguments.keep)
    report(tallies)
    findings = sum(len(tally.findings) for tally in tallies.values())
    kinds = {name: tally.to_dict() for name, tally in tallies.items()}
    cases = sum(tally.outcomes.total() for tally in tallies.values())
    print(json.dumps({"cases": cases, "findings": findings, "kinds": kinds}))
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
