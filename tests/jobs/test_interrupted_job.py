"""A job that is stopped in the middle, again and again, and then left to finish."""

from __future__ import annotations

import json
import re
import shlex
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.storage.store import is_temporary
from pipeline.table import open_table
from tests.jobs.conftest import SETTINGS, WORKERS, Undisturbed
from tests.jobs.running import Ended, Job, file_bytes

pytestmark = pytest.mark.timeout(1800)
HOW_TO_GO_ON = "run the same command again to continue"


@dataclass(frozen=True)
class Interrupted:
    """Three runs that were stopped, and the one that finished, over one table."""

    table: Path
    ctrl_c: Ended
    sigterm: Ended
    left_by_ctrl_c: list[str]
    left_by_sigterm: list[str]
    parts_at_kill: int
    shards_at_kill: int
    finished: Ended


def left_after_a_moment(job: Job) -> list[str]:
    """Return the processes of a job that still run after a minute."""
    deadline = time.monotonic() + 60
    while (left := job.left_running()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return left


class TooFast(Exception):  # noqa: N818 - no error of the job's
    """The run ended before it could be stopped."""


@pytest.fixture(scope="module")
def interrupted(
    photos: Path, tiny_bundle: str, tmp_path_factory: pytest.TempPathFactory
) -> Interrupted:
    where = ("--input", photos, "--output", "table", "--model", tiny_bundle)
    # On busy cores this process may sleep while the twelve parts are done: then it starts again.
    for _ in range(4):
        with suppress(TooFast):
            return stopped_three_times(tmp_path_factory.mktemp("interrupted"), where)
    raise TooFast


def stopped_three_times(folder: Path, where: tuple[object, ...]) -> Interrupted:
    """Ctrl-C, SIGTERM, kill -9, and a run to the end, over one table."""
    latents = folder / "table" / "latents"

    def start(*, terminal: bool = False) -> Job:
        return Job(folder, *where, *SETTINGS, *WORKERS, terminal=terminal)

    def started_and_at_work(*, terminal: bool = False) -> Job:
        there = len(list(latents.glob("*.parquet")))
        job = start(terminal=terminal)
        try:
            job.wait_for_files(latents, there + 1)
        except AssertionError:
            if job.ended().code == 0:
                raise TooFast from None
            raise
        return job

    first = started_and_at_work(terminal=True)
    ctrl_c, left_by_ctrl_c = first.interrupt(), left_after_a_moment(first)
    second = started_and_at_work()
    sigterm, left_by_sigterm = second.terminate(), left_after_a_moment(second)
    third = started_and_at_work()
    third.kill()
    parts = len(list(latents.glob("*.parquet")))
    shards = len(list((folder / "table" / "_shards").glob("*.json")))
    if parts == 12:
        raise TooFast
    # At once: workers of the killed run may write on beside this one.
    finished = start().ended()
    return Interrupted(
        folder / "table",
        ctrl_c,
        sigterm,
        left_by_ctrl_c,
        left_by_sigterm,
        parts,
        shards,
        finished,
    )


def test_the_runs_were_stopped_in_the_middle(interrupted: Interrupted) -> None:
    assert 0 < interrupted.parts_at_kill < 12
    assert interrupted.shards_at_kill < 2


def test_ctrl_c_ends_with_the_resume_command(interrupted: Interrupted) -> None:
    run = interrupted.ctrl_c
    assert run.code == 1, run.err
    assert run.err.splitlines()[-1].endswith(HOW_TO_GO_ON)
    assert "Traceback" not in run.err
    assert (run.line["exit_code"], run.line["errors"]) == (1, [])
    assert run.line["samples"] >= 0


def test_a_terminal_shows_progress_without_rays_lines(
    interrupted: Interrupted,
) -> None:
    text = interrupted.ctrl_c.err
    drawn = re.findall(r"(?:^|\r\x1b\[K)(\d+:\d\d · [^\r\n]*)", text)
    steps = ("loading PyTorch and Ray", "loading the model", "starting Ray")
    first_of = [next(n for n, line in enumerate(drawn) if step in line) for step in steps]
    assert first_of == sorted(first_of)
    assert any(re.search(r"images \d+ of 12 · \d+ %", line) for line in drawn)
    stopping = [number for number, line in enumerate(drawn) if "stopping (Ctrl-C)" in line]
    assert stopping[-1] == len(drawn) - 1, "from the signal to the end"
    said = re.sub(r"\d+:\d\d · [^\r\n]*", "", text)
    words = [word for word in ("raylet", "(pid=", "core_worker", "infinite") if word in said]
    assert words == []


def test_the_resume_command_can_be_pasted(interrupted: Interrupted) -> None:
    for run in (interrupted.ctrl_c, interrupted.sigterm):
        command = shlex.split(run.err.splitlines()[-2])
        assert command[1].endswith("invert_dataset.py")
        assert command[command.index("--output") + 1] == "table"


def test_sigterm_ends_with_the_resume_command(interrupted: Interrupted) -> None:
    run = interrupted.sigterm
    assert run.code == 1, run.err
    assert run.err.splitlines()[-1].endswith(HOW_TO_GO_ON)
    assert "Traceback" not in run.err
    assert (run.line["exit_code"], run.line["errors"]) == (1, [])
    assert run.line["skipped_parts"] > 0, "the first run's parts are not done again"


def test_no_process_outlives_its_run(interrupted: Interrupted) -> None:
    assert interrupted.left_by_ctrl_c == []
    assert interrupted.left_by_sigterm == []


def test_the_last_run_does_only_what_is_missing(interrupted: Interrupted) -> None:
    run = interrupted.finished
    assert run.code == 0, run.err
    assert run.line["parts"] + run.line["skipped_parts"] == 12
    assert run.line["skipped_parts"] >= interrupted.parts_at_kill - 1


def test_the_table_equals_an_undisturbed_runs_bytes(
    interrupted: Interrupted, undisturbed: Undisturbed
) -> None:
    for kind in ("latents", "rejects"):
        ours, theirs = file_bytes(interrupted.table, kind), file_bytes(undisturbed.table, kind)
        # A writer that is killed in mid-put leaves a hidden file, which no reader takes for a part.
        ours = {name: ours[name] for name in ours if not is_temporary(name)}
        assert ours.keys() == theirs.keys(), "no file is missing, none is left over"
        assert [name for name in ours if ours[name] != theirs[name]] == []
    ours, theirs = (file_bytes(run.table, "_shards") for run in (interrupted, undisturbed))
    assert ours.keys() == theirs.keys()
    table = open_table(str(interrupted.table))
    assert table.verify() == open_table(str(undisturbed.table)).verify()


def test_every_run_leaves_a_record(
    interrupted: Interrupted,
) -> None:
    runs = sorted((interrupted.table / "_runs").glob("*.json"))
    codes = [json.loads(run.read_text())["exit_code"] for run in runs]
    assert codes.count(None) == 1
    assert sorted(code for code in codes if code is not None) == [0, 1, 1]
