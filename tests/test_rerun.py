"""`--attempts` runs a failed job again, but not a wrong request or a stopped job."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.rerun import run_again

# Exits with the next code in the file and removes it, so that the file counts the runs.
JOB = """
import sys, pathlib
codes = pathlib.Path(sys.argv[1])
first, _, rest = codes.read_text().partition(" ")
codes.write_text(rest)
print("ran", flush=True)
sys.exit(int(first))
"""


def runs(tmp_path: Path, codes: str, attempts: int) -> tuple[int, int]:
    """Return the exit code and the number of runs."""
    left = tmp_path / "codes"
    left.write_text(codes)
    command = [sys.executable, "-c", JOB, str(left)]
    code = run_again(command, attempts, first_wait_s=0.01)
    return code, len(codes.split()) - len(left.read_text().split())


@pytest.mark.parametrize(
    ("codes", "attempts", "code", "ran"),
    [
        ("0 0", 3, 0, 1),
        ("1 1 0 0", 4, 0, 3),
        ("2 0", 4, 2, 1),
        ("1 2 0", 4, 2, 2),
        ("1 1 1 0", 3, 1, 3),
        ("1 0", 1, 1, 1),
        ("137 0", 2, 0, 2),
    ],
)
def test_only_failed_runs_are_repeated(
    tmp_path: Path, codes: str, attempts: int, code: int, ran: int
) -> None:
    assert runs(tmp_path, codes, attempts) == (code, ran)


def test_failed_run_reports_the_next_attempt(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runs(tmp_path, "1 0", 2)
    assert "attempt 1 of 2 ended with exit code 1: trying again in 0.01 s" in caplog.text


@pytest.mark.parametrize("while_waiting", [False, True])
def test_a_stopped_job_is_not_run_again(while_waiting: bool) -> None:
    """SIGTERM ends the running job, or the wait for the next attempt."""
    job = "import sys; print('ran', flush=True); " + (
        "sys.exit(1)" if while_waiting else "import signal; signal.pause()"
    )
    parent = (
        "import sys; from pipeline.rerun import run_again; "
        f"sys.exit(run_again([sys.executable, '-c', {job!r}], 5, first_wait_s=600))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", parent],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])},
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "ran\n"
    if while_waiting:
        assert "again in 600 s" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
