"""Targets of the Makefile whose commands no other test runs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def make(*arguments: str) -> str:
    """Return the output of make, run with this interpreter and without installing anything."""
    if not shutil.which("make"):
        pytest.skip("no make")
    binaries = Path(sys.executable).parent
    command = [
        "make",
        "--no-print-directory",
        "-o",
        ".venv/installed",
        f"BIN={binaries}",
        *arguments,
    ]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def test_every_benchmark_starts() -> None:
    said = make("bench", "BENCH_FLAGS=--help")
    benches = sorted(path.name for path in (ROOT / "tests" / "bench").glob("[a-z]*.py"))
    run = re.findall(r"^== tests/bench/(.*)$", said, re.MULTILINE)
    assert run == [name for name in benches if not name.startswith("test_")]
    assert len(re.findall(r"^usage: ", said, re.MULTILINE)) == len(run) + 1
    assert "usage: benchmark.py" in said


def test_bench_measures_driver_memory_at_two_sizes() -> None:
    last = make("-n", "bench").splitlines()[-1]
    assert "jobs/benchmark.py --simulate" in last
    assert "--images 1000,100000" in last


def test_clean_keeps_training_checkpoints() -> None:
    assert not re.search(r"\sbuild\b", make("-n", "clean"))


def test_the_hosts_target_runs_the_tests_of_hosts() -> None:
    assert make("-n", "hosts").split()[-4:] == ["pytest", "-m", "slow", "tests/hosts"]
