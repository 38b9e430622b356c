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
from pipeline.engine import console
from pipeline.engine.address import RAY_LOG
from pipeline.engine.console import print_estimate, print_outcome
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
        asked = query_latents._parser().parse_args(words[2:])
        assert asked.table == str(place)
        assert asked.query.startswith("SELECT ")
    assert contact_sheet.parse_arguments(sheet[2:]).table == str(place)


def test_a_table_without_crops_gets_no_contact_sheet(
    config_of: Callable[..., JobConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    lines = said(capsys, config_of(keep_crops=True), outcome=RunRecord())
    assert not any("contact_sheet" in line or "FROM rejects" in line for line in lines)


@pytest.mark.parametrize("interrupted", [True, False])
def test_what_failed_ends_with_the_command_to_go_on(
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
    lines = said(capsys, config_of(), outcome=outcome, told={"error 0", "error 1"})
    failed = [line for line in lines if line.startswith("failed: ")]
    assert failed == [f"failed: error {number}" for number in range(2, 22)]
    assert any(line.startswith("... and 3 more") for line in lines)


def test_the_python_that_is_not_on_the_path_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console.shutil, "which", lambda _: sys.executable)
    assert console._python() == "python"
    monkeypatch.setattr(console.shutil, "which", lambda _: "/usr/bin/python")
    assert console._python() == shlex.quote(sys.executable)


def test_a_dry_run_prints_a_table_for_people(
    config_of: Callable[..., JobConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    found = {"samples_to_do": 1200, "samples_are_exact": False, "shards": 3, "dry_run": True}
    found |= {"estimated_seconds": 3700.0, "estimated_table_bytes": 2_000_000}
    print_estimate(config_of(), found | {"left_out": {".txt": 2}, "model": "[faces]"})
    told = capsys.readouterr()
    assert told.out == "", "stdout is the JSON line's"
    text = " ".join(told.err.split())
    for words in ("images to do │ about 1200", "about 1:01:40", "2.0 MB", ".txt 2", "[faces]"):
        assert words in text
    assert "dry_run" not in text
    print_estimate(config_of(log_format="json"), found)
    assert capsys.readouterr().err == ""
