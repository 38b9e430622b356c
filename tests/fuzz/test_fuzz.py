"""Thousands of cases of bad input end as documented, and the fuzzer detects planted faults."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz import planted
from tests.fuzz.catalogue import KINDS, again, plan
from tests.fuzz.driver import ROOT, Tally, fuzz
from tests.fuzz.images import FORMATS, NEWER_FORMATS

pytestmark = pytest.mark.timeout(1200)
CASES = 2000
# Seeds that revealed defects: a traceback, or a line that a terminal cannot show.
FIXED = {
    "checkpoint": [1000384, 1000699, 1000856, 1001339],
    "codes": [1000688],
    "dictionary": [1000062, 1000290, 1000423],
    "table": [1000074, 1000078, 1000193, 1000293, 1000358, 1000402, 1000546, 1000692],
}


@pytest.fixture(scope="module")
def tallies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tally]:
    return fuzz(plan(CASES, seed=0), tmp_path_factory.mktemp("findings"))


@pytest.mark.parametrize("name", KINDS)
def test_bad_input_gives_rows_rejects_or_clear_errors(name: str, tallies: dict[str, Tally]) -> None:
    tally = tallies[name]
    assert [(answer.seed, answer.finding) for answer in tally.findings] == []
    assert tally.most_mib <= KINDS[name].memory_mib


def test_earlier_findings_stay_fixed(tmp_path: Path) -> None:
    cases = [case for name, seeds in FIXED.items() for case in again(name, seeds)]
    findings = [
        answer.finding for tally in fuzz(cases, tmp_path).values() for answer in tally.findings
    ]
    assert findings == []


def test_damaged_files_are_refused_and_valid_ones_read(tallies: dict[str, Tally]) -> None:
    for name in (*FORMATS, *NEWER_FORMATS):
        outcomes = tallies[name].outcomes
        assert outcomes["row"] > 0, name
        assert outcomes.keys() & {"reject:undecodable", "reject:truncated"}, name
    assert tallies["sidecar"].outcomes.keys() == {"row"}
    assert {"row", "error:StorageError"} <= tallies["tar"].outcomes.keys()


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tally], Path]:
    keep = tmp_path_factory.mktemp("planted")
    seeds = range(planted.BAD - 2, planted.BAD + 3)
    return fuzz([("tests.fuzz.planted", kind, seeds) for kind in planted.KINDS], keep), keep


@pytest.mark.parametrize("name", planted.SIGNS)
def test_a_planted_fault_is_attributed_to_its_case(
    name: str, faults: tuple[dict[str, Tally], Path]
) -> None:
    tally = faults[0][name]
    (finding,) = tally.findings
    assert finding.seed == planted.BAD
    assert finding.finding.startswith(planted.SIGNS[name]) or planted.SIGNS[name] in finding.finding
    assert tally.outcomes.total() == 5


def test_a_finding_is_stored_with_its_command(
    faults: tuple[dict[str, Tally], Path],
) -> None:
    folder = faults[1] / f"crash-{planted.BAD}"
    assert len((folder / "case" / "bytes").read_bytes()) == 8
    said = (folder / "finding.txt").read_text().splitlines()
    assert said == ["crash: SIGSEGV", "python -m tests.fuzz --only crash --seed 5 --count 1"]


def test_command_line_prints_counts_last(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.fuzz", "--only", "bmp", "--count", "20", "--seed", "7"]
    run = subprocess.run(
        [*command, "--keep", str(tmp_path / "kept")],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    counts = json.loads(run.stdout.splitlines()[-1])
    assert (counts["cases"], counts["findings"]) == (20, 0)
    assert sum(counts["kinds"]["bmp"]["outcomes"].values()) == 20
    assert not (tmp_path / "kept").exists()
