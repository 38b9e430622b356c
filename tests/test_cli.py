"""Command lines of all jobs: wrong flags, signals and errors end as documented."""

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
# Keys that the README documents for the last line of every run.
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
def test_unknown_flag_suggests_the_nearest_flag(
    capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    message, _ = wrong_flag(capsys, "--table", "t", flag)
    assert message.endswith(f"unrecognized arguments: {flag}; did you mean --steps?")


def test_dissimilar_flag_is_refused_without_a_suggestion(
    capsys: pytest.CaptureFixture[str],
) -> None:
    message, _ = wrong_flag(capsys, "--table", "t", "--xyzzy", "1")
    assert message.endswith("unrecognized arguments: --xyzzy 1")
    message, _ = wrong_flag(capsys)
    assert message.endswith("the following arguments are required: --table")


# All but the tour, which is a notebook.
@pytest.mark.parametrize("job", sorted({path.stem for path in JOBS.glob("[a-z]*.py")} - {"tour"}))
def test_help_states_every_default(job: str, monkeypatch: pytest.MonkeyPatch) -> None:
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
    with_default = [action for action in parser._actions if str(action.default) not in NO_DEFAULT]
    assert [
        action.dest
        for action in with_default
        if not (action.help and "default" in str(texts(action)))
    ] == []


def test_expanded_shell_pattern_is_reported_in_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        invert_dataset.main(["--input", "a.jpg", "b.jpg", "c.jpg", "--output", "out"])
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert "b.jpg c.jpg; a flag takes one value, so give one folder, file or URI" in said.err
    assert json.loads(said.out)["exit_code"] == 2


def test_wrong_flag_is_repeated_in_the_json_line(capsys: pytest.CaptureFixture[str]) -> None:
    message, line = wrong_flag(capsys, "--step", "3", last_line={"samples": 0})
    line = json.loads(line)
    assert line["exit_code"] == 2
    assert message.endswith(line["errors"][0].rsplit(": ", 1)[-1])
    assert line["samples"] == 0


def test_read_only_job_prints_no_json_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(wrong_flag(capsys, "--step", "3", reads_only=True)) == 1


def test_json_line_of_an_error_keeps_its_keys(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> int:
        raise InputError("no such input")

    assert exit_code_of(work, last_line={"samples": 0}) == 2
    line = json.loads(capsys.readouterr().out)
    assert line == {"samples": 0, "errors": ["no such input"], "exit_code": 2}


STOPPED = """
import os, signal, time
from pipeline.cli import exit_code_of

# As at a terminal. In a shell's background job, such as a whole test run, Ctrl-C is ignored, and
# its programs inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

def work():
    os.kill(os.getpid(), signal.{signal})
    time.sleep(60)

raise SystemExit(exit_code_of(work, stopped="run it again", {options}))
"""


@pytest.mark.parametrize("signal", ["SIGTERM", "SIGINT"])
def test_stopped_job_reports_it_on_both_streams(signal: str) -> None:
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


def test_further_signals_do_not_interrupt_cleanup() -> None:
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
def test_refused_run_prints_the_documented_keys(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
) -> None:
    monkeypatch.chdir(tmp_path)
    line = last_line(capsys, invert_dataset, *arguments)
    assert line.keys() >= DOCUMENTED
    assert line["samples"] == line["faces"] == line["rejects"] == 0
    assert line["table"] == (None if "--step" in arguments else "out")
    assert not (tmp_path / "out").exists()


def test_all_jobs_report_wrong_flags_alike(capsys: pytest.CaptureFixture[str]) -> None:
    refined = last_line(capsys, refine_dataset, "--table", "t", "--output", "o", "--stepz", "3")
    assert refined.keys() >= DOCUMENTED
    assert last_line(capsys, convert_model, "a.pt", "b", "--license", "x")["errors"] == [
        "unrecognized arguments: --license x; did you mean --licence?"
    ]
    assert last_line(capsys, export_table, "--tabel", "x")["exit_code"] == 2
    with pytest.raises(SystemExit):
        query_latents.main(["--cvs"])
    assert capsys.readouterr().out == ""


def test_unexpected_error_has_its_trace_in_the_json_line(
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
