"""Promises of what a job says last: where the table is, what to do next, how to go on."""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs import contact_sheet, query_latents
from pipeline.config import JobConfig
from pipeline.engine.address import RAY_LOG
from pipeline.engine.console import summary
from pipeline.engine.console.summary import print_estimate, print_outcome
from pipeline.table import Counts, RunRecord

COMMAND = ("my jobs/invert_dataset.py", "--input", "my photos", "--output", "a b")


def said(capsys: pytest.CaptureFixture[str], config: JobConfig, **how: Any) -> list[str]:
    outcome = how.pop("outcome", None) or RunRecord(Counts(rejects=1, reasons=Counter(no_face=1)))
    print_outcome(config, outcome, command=COMMAND, **how)
    return capsys.readouterr().err.splitlines()


def test_the_next_commands_are_printed_to_be_pasted(
    config_of: Callable[..., JobConfig], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    place = tmp_path / "latents of mine"
    lines = said(capsys, config_of(output=str(place), keep_crops=True, keep_steps=True))
    at = lines.index(f"table: {place}")
    best, why, sheet = (shlex.split(line) for line in lines[at + 1 :])
    for words, job in ((best, "query_latents"), (why, "query_latents"), (sheet, "contact_sheet")):
        assert words[1] == f"my jobs/{job}.py", "beside the job that ran"
    for words in (best, why):
        args = query_latents._parser().parse_args(words[2:])
        assert args.table == str(place)
        assert args.query.startswith("SELECT ")
    assert contact_sheet.parse_arguments(sheet[2:]).table == str(place)


def test_a_table_without_rejects_gets_no_query_of_them(
    config_of: Callable[..., JobConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    lines = said(capsys, config_of(keep_crops=True), outcome=RunRecord())
    assert not any("FROM rejects" in line for line in lines)
    assert "contact_sheet" in lines[-1], "any table has one"


@pytest.mark.parametrize("interrupted", [True, False])
def test_failures_end_with_the_resume_command(
    config_of: Callable[..., JobConfig],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    interrupted: bool,
) -> None:
    outcome = RunRecord(errors=["the disk is full"], interrupted=interrupted)
    outcome.ray_log = str(tmp_path)
    lines = said(capsys, config_of(), outcome=outcome)
    assert lines[-5].startswith("failed: the disk is full")
    assert lines[-4] == f"Ray's own log: {tmp_path} ({RAY_LOG}=1 shows what it prints)"
    assert lines[-3] == "to continue:"
    assert shlex.split(lines[-2])[1:] == list(COMMAND)
    assert lines[-1].endswith("run the same command again to continue")


def test_each_failure_is_printed_once(
    config_of: Callable[..., JobConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    errors = [f"error {number % 25}" for number in range(30)]
    outcome = RunRecord(errors=errors)
    lines = said(capsys, config_of(), outcome=outcome, reported={"error 0", "error 1"})
    failed = [line for line in lines if line.startswith("failed: ")]
    assert failed == [f"failed: error {number}" for number in range(2, 22)]
    assert any(line.startswith("... and 3 more") for line in lines)


def test_commands_are_as_short_as_a_shell_finds_them(monkeypatch: pytest.MonkeyPatch) -> None:
    restyle = "/my env/bin/restyle"
    paths = {"python": sys.executable, "restyle": restyle}
    monkeypatch.setattr(summary.shutil, "which", paths.get)
    # As `jobs/restyle.py` leaves `sys.argv`.
    monkeypatch.setattr(sys.modules["__main__"], "__file__", restyle, raising=False)
    assert summary._called("jobs/it.py") == "python jobs/it.py"
    assert summary._called("restyle invert") == "restyle"
    assert summary._job("query", "restyle invert") == "restyle query"
    paths |= {"python": "/usr/bin/python", "restyle": "/usr/bin/restyle"}
    assert shlex.split(summary._called("jobs/it.py")) == [sys.executable, "jobs/it.py"]
    assert shlex.split(summary._called("restyle invert")) == [sys.executable, restyle]
    assert shlex.split(summary._job("sheet", "restyle invert"))[1:] == [restyle, "sheet"]


def test_a_dry_run_prints_a_table_for_people(
    config_of: Callable[..., JobConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    result = {"samples_to_do": 1200, "samples_are_exact": False, "shards": 3, "dry_run": True}
    result |= {"estimated_seconds": 3700.0, "estimated_table_bytes": 2_000_000}
    print_estimate(config_of(), result | {"left_out": {".txt": 2}, "model": "[faces]"})
    output = capsys.readouterr()
    assert output.out == "", "stdout is the JSON line's"
    text = " ".join(output.err.split())
    for words in ("images to do │ about 1200", "about 1:01:40", "2.0 MB", ".txt 2", "[faces]"):
        assert words in text
    assert "dry_run" not in text
    print_estimate(config_of(log_format="json"), result)
    assert capsys.readouterr().err == ""
