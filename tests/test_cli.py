"""Promises of the jobs as programs: how a wrong flag ends."""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from jobs import convert_model, export_table, invert_dataset, query_latents, refine_dataset
from pipeline.cli import exit_code_of, job_parser
from pipeline.errors import InputError

JOBS = Path(__file__).resolve().parents[1] / "jobs"
NO_DEFAULT = ("None", "False", "", "[]", argparse.SUPPRESS)
# What the README promises of the last line of every run.
DOCUMENTED = {
    *("samples", "faces", "rejects", "parts", "skipped_parts", "seconds", "images_per_second"),
    "table",
}


def wrong_flag(capsys: pytest.CaptureFixture[str], *flags: str, **options: object) -> list[str]:
    parser = job_parser("A job.", **options)  # type: ignore[arg-type]
    parser.add_argument("--steps")
    parser.add_argument("--table", required=True)
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(flags)
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert "error: " in said.err.splitlines()[-1]
    return [said.err.splitlines()[-1], *said.out.splitlines()]


@pytest.mark.parametrize("flag", ["--step", "--stepz=3", "--Steps"])
def test_an_unknown_flag_is_told_with_the_nearest_one(
    capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    told, _ = wrong_flag(capsys, "--table", "t", flag)
    assert told.endswith(f"unrecognized arguments: {flag}; did you mean --steps?")


def test_a_flag_like_no_other_is_told_without_a_guess(capsys: pytest.CaptureFixture[str]) -> None:
    told, _ = wrong_flag(capsys, "--table", "t", "--xyzzy", "1")
    assert told.endswith("unrecognized arguments: --xyzzy 1")
    told, _ = wrong_flag(capsys)
    assert told.endswith("the following arguments are required: --table")


@pytest.mark.parametrize("job", sorted(path.stem for path in JOBS.glob("[a-z]*.py")))
def test_help_tells_every_default(job: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parsers: list[argparse.ArgumentParser] = []

    def no_parsing(parser: argparse.ArgumentParser, *_: object) -> None:
        parsers.append(parser)
        raise SystemExit

    for name in ("parse_args", "parse_intermixed_args"):
        monkeypatch.setattr(argparse.ArgumentParser, name, no_parsing)
    with pytest.raises(SystemExit):
        importlib.import_module(f"jobs.{job}").main([])
    (parser,) = parsers
    texts = parser._get_formatter()._get_help_string
    telling = [one for one in parser._actions if str(one.default) not in NO_DEFAULT]
    assert [one.dest for one in telling if not (one.help and "default" in str(texts(one)))] == []


def test_a_list_that_a_shell_made_of_a_pattern_is_told_in_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        invert_dataset.main(["--input", "a.jpg", "b.jpg", "c.jpg", "--output", "out"])
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert "b.jpg c.jpg; a flag takes one value: of images one folder, file or URI" in said.err
    assert json.loads(said.out)["exit_code"] == 2


def test_a_wrong_flag_is_on_the_last_line_of_stdout_too(capsys: pytest.CaptureFixture[str]) -> None:
    told, line = wrong_flag(capsys, "--step", "3", last_line={"samples": 0})
    line = json.loads(line)
    assert line["exit_code"] == 2
    assert told.endswith(line["errors"][0].rsplit(": ", 1)[-1])
    assert line["samples"] == 0


def test_a_job_that_only_reads_prints_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(wrong_flag(capsys, "--step", "3", reads_only=True)) == 1


def test_an_error_keeps_the_keys_of_the_last_line(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> int:
        raise InputError("no such input")

    assert exit_code_of(work, last_line={"samples": 0}) == 2
    line = json.loads(capsys.readouterr().out)
    assert line == {"samples": 0, "errors": ["no such input"], "exit_code": 2}


STOPPED = """
import os, signal, time
from pipeline.cli import exit_code_of

# As at a terminal: a shell's background job, such as a whole test run, has Ctrl-C ignored, and
# hands that down to its programs.
signal.signal(signal.SIGINT, signal.default_int_handler)

def work():
    os.kill(os.getpid(), signal.{signal})
    time.sleep(60)

raise SystemExit(exit_code_of(work, stopped="run it again", {options}))
"""


@pytest.mark.parametrize("signal", ["SIGTERM", "SIGINT"])
def test_a_stopped_job_says_so_on_both_streams(signal: str) -> None:
    for options, out in (
        ("last_line={'samples': 0}", {"samples": 0, "errors": [], "exit_code": 1}),
        ("reads_only=True", None),
    ):
        script = STOPPED.format(signal=signal, options=options)
        ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        assert (ended.returncode, ended.stderr) == (1, "stopped: run it again\n")
        assert (json.loads(ended.stdout) if out else ended.stdout or None) == out


DISTURBED = """
import os, signal, time
from pipeline.cli import exit_code_of

def disturb():
    os.kill(os.getpid(), signal.SIGTERM)

def work():
    try:
        disturb()
        time.sleep(60)
    finally:
        disturb()
        print("all is put away", flush=True)

code = exit_code_of(work, reads_only=True)
disturb()
raise SystemExit(code)
"""


def test_a_job_that_was_stopped_ends_whatever_signals_follow() -> None:
    ended = subprocess.run([sys.executable, "-c", DISTURBED], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (1, "all is put away\n"), ended.stderr


def last_line(capsys: pytest.CaptureFixture[str], job: object, *arguments: object) -> dict:
    try:
        code = job.main(list(map(str, arguments)))  # type: ignore[attr-defined]
    except SystemExit as ended:
        code = ended.code
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert code == line["exit_code"] == 2
    return line


@pytest.mark.parametrize(
    "arguments",
    [
        ("--input", "nowhere", "--output", "out", "--steps", "none"),
        ("--input", "nowhere", "--output", "out"),
        ("--output", "out", "--step", "3"),
        ("--output", "out", "--dry-run", "--input", "nowhere"),
    ],
)
def test_a_refusal_of_the_job_has_the_documented_keys(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
) -> None:
    monkeypatch.chdir(tmp_path)
    line = last_line(capsys, invert_dataset, *arguments)
    assert line.keys() >= DOCUMENTED
    assert line["samples"] == line["faces"] == line["seconds"] == 0
    assert line["table"] == (None if "--step" in arguments else "out")
    assert not (tmp_path / "out").exists()


def test_the_other_jobs_tell_a_wrong_flag_alike(capsys: pytest.CaptureFixture[str]) -> None:
    refined = last_line(capsys, refine_dataset, "--table", "t", "--output", "o", "--stepz", "3")
    assert refined.keys() >= DOCUMENTED
    assert last_line(capsys, convert_model, "a.pt", "b", "--license", "x")["errors"] == [
        "unrecognized arguments: --license x; did you mean --licence?"
    ]
    assert last_line(capsys, export_table, "--tabel", "x")["exit_code"] == 2
    with pytest.raises(SystemExit):
        query_latents.main(["--cvs"])
    assert capsys.readouterr().out == ""


def test_an_unexpected_error_keeps_its_trace_on_the_last_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2hunter2")

    def work() -> int:
        raise ZeroDivisionError("by hunter2hunter2")

    assert exit_code_of(work, last_line={"samples": 0}) == 1
    out, err = capsys.readouterr()
    assert err == "unexpected error: ZeroDivisionError: by ***\n"
    line = json.loads(out.splitlines()[-1])
    assert (line["samples"], line["exit_code"]) == (0, 1)
    assert line["errors"] == ["ZeroDivisionError: by ***"]
    assert "in work\n" in line["trace"]
    assert "hunter2" not in line["trace"]
