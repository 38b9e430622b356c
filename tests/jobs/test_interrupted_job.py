"""A job that is stopped in the middle, again and again, and then left to finish.

While its own Ray runs, the tests look who may enter that Ray's folder and ports.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.storage.store import is_temporary
from pipeline.table import open_table
from tests.jobs.conftest import SETTINGS, WORKERS, Undisturbed
from tests.jobs.running import Ended, Job, file_bytes

pytestmark = pytest.mark.timeout(1800)
HOW_TO_GO_ON = "run the same command again to continue"
LISTENING = "0A"
PACE_S = 0.005  # of signals: Ray's core once took SIGTERM from Python for some milliseconds
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


@dataclass(frozen=True)
class Signalled:
    """A run that SIGTERM stopped and that got more of them while it ended; its Ray until then."""

    run: Ended
    signals: int
    listened_on: set[str]  # addresses, as the kernel writes them
    modes: dict[str, int]  # of its folders
    left_running: list[str]
    left_files: list[str]


@dataclass(frozen=True)
class Interrupted:
    """Three runs that were stopped, and the one that finished, over one table."""

    table: Path
    ctrl_c: Ended
    left_by_ctrl_c: list[str]
    sigterm: Signalled
    parts_at_kill: int
    shards_at_kill: int
    finished: Ended


class TooFast(Exception):  # noqa: N818 - no error of the job's
    """The run ended before it could be stopped."""


def left_after_a_moment(job: Job) -> list[str]:
    """Return the processes of a job that still run after a minute."""
    deadline = time.monotonic() + 60
    while (left := job.left_running()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return left


def listening(pids: list[int]) -> set[str]:
    """Return the addresses, as the kernel writes them, on which the processes listen."""
    inodes = set()
    for pid in pids:
        for opened in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                target = str(opened.readlink())
            except OSError:
                continue
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    result = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == LISTENING and words[9] in inodes:
                result.add(words[1].split(":")[0])
    return result


def processes(job: Job) -> list[int]:
    result = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"{job.mark}=".encode() in (process / "environ").read_bytes():
                result.append(int(process.name))
        except OSError:
            continue
    return result


def signalled(job: Job, temp: Path) -> Signalled:
    """Stop a job by SIGTERM, and send more of them from its answer to its end."""
    listened_on = listening(processes(job))
    modes = {path.name: stat.S_IMODE(path.lstat().st_mode) for path in temp.glob("restyle-*")}
    job.process.terminate()
    while "stopping (SIGTERM)" not in job.err.read_text() and job.process.poll() is None:
        time.sleep(PACE_S)
    signals = 1
    while job.process.poll() is None:
        signals += 1
        job.process.terminate()
        time.sleep(PACE_S)
    run, left = job.ended(), left_after_a_moment(job)
    if run.code == 0:
        raise TooFast
    left_files = [path.name for path in temp.glob("restyle-*")]
    return Signalled(run, signals, listened_on, modes, left, left_files)


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


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Make a folder in /tmp: Ray's sockets are below it, and their paths must be short."""
    temp = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))
    try:
        yield temp
    finally:
        shutil.rmtree(temp, ignore_errors=True)


def stopped_three_times(folder: Path, where: tuple[object, ...]) -> Interrupted:
    """Ctrl-C, SIGTERM, kill -9, and a run to the end, over one table."""
    latents = folder / "table" / "latents"

    def start(*, terminal: bool = False, **environment: str) -> Job:
        return Job(folder, *where, *SETTINGS, *WORKERS, terminal=terminal, **environment)

    def started_and_at_work(*, terminal: bool = False, **environment: str) -> Job:
        there = len(list(latents.glob("*.parquet")))
        job = start(terminal=terminal, **environment)
        try:
            job.wait_for_files(latents, there + 1)
        except AssertionError:
            if job.ended().code == 0:
                raise TooFast from None
            raise
        return job

    first = started_and_at_work(terminal=True)
    ctrl_c, left_by_ctrl_c = first.interrupt(), left_after_a_moment(first)
    with temporary_folder() as temp:
        sigterm = signalled(started_and_at_work(TMPDIR=str(temp)), temp)
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
        left_by_ctrl_c,
        sigterm,
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
    steps = ("loading PyTorch and Ray", "loading the model")  # others may be too short to see
    first_of = [next(n for n, line in enumerate(drawn) if step in line) for step in steps]
    assert first_of == sorted(first_of)
    assert any(re.search(r"images \d+ of 12 · \d+ %", line) for line in drawn)
    stopping = [number for number, line in enumerate(drawn) if "stopping (Ctrl-C)" in line]
    assert stopping[-1] == len(drawn) - 1, "from the signal to the end"
    said = re.sub(r"\d+:\d\d · [^\r\n]*", "", text)
    words = [word for word in ("raylet", "(pid=", "core_worker", "infinite") if word in said]
    assert words == []


def test_the_resume_command_can_be_pasted(interrupted: Interrupted) -> None:
    for run in (interrupted.ctrl_c, interrupted.sigterm.run):
        command = shlex.split(run.err.splitlines()[-2])
        assert command[1].endswith("invert_dataset.py")
        assert command[command.index("--output") + 1] == "table"


def test_sigterm_ends_with_the_resume_command(interrupted: Interrupted) -> None:
    run = interrupted.sigterm.run
    assert run.code == 1, run.err
    assert run.err.splitlines()[-1].endswith(HOW_TO_GO_ON)
    assert "Traceback" not in run.err
    assert (run.line["exit_code"], run.line["errors"]) == (1, [])
    assert run.line["skipped_parts"] > 0, "the first run's parts are not done again"
    assert "rejects_by_reason" in run.line, "the account of a run, not of a request"


def test_signals_while_it_ends_change_nothing(interrupted: Interrupted) -> None:
    assert interrupted.sigterm.signals >= 20
    assert interrupted.sigterm.run.code == 1


def test_its_ray_listens_on_the_loopback_alone(interrupted: Interrupted) -> None:
    assert interrupted.sigterm.listened_on
    assert interrupted.sigterm.listened_on <= LOOPBACK


def test_only_its_user_enters_what_it_writes(interrupted: Interrupted) -> None:
    modes = interrupted.sigterm.modes
    assert modes
    assert {mode & 0o077 for mode in modes.values()} == {0}


def test_no_process_outlives_its_run(interrupted: Interrupted) -> None:
    assert interrupted.left_by_ctrl_c == []
    assert interrupted.sigterm.left_running == []
    assert interrupted.sigterm.left_files == []


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
