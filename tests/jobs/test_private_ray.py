"""A Ray of a job's own: who may enter its folder and ports, and what is left after many signals."""

from __future__ import annotations

import json
import shutil
import stat
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.jobs.conftest import SETTINGS, WORKERS
from tests.jobs.running import Ended, Job
from tests.jobs.test_interrupted_job import left_after_a_moment

pytestmark = pytest.mark.timeout(900)
LISTENING = "0A"
PACE_S = 0.005  # of signals: Ray's core once took SIGTERM from Python for some milliseconds
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


def listening(pids: list[int]) -> set[str]:
    """The addresses, as the kernel writes them, on which these processes take connections."""
    inodes = set()
    for pid in pids:
        for opened in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                target = str(opened.readlink())
            except OSError:
                continue
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == LISTENING and words[9] in inodes:
                found.add(words[1].split(":")[0])
    return found


def processes(job: Job) -> list[int]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"{job.mark}=".encode() in (process / "environ").read_bytes():
                found.append(int(process.name))
        except OSError:
            continue
    return found


@dataclass(frozen=True)
class Stopped:
    """What a run showed at work, and left after signals every few milliseconds."""

    run: Ended
    listened_on: set[str]
    modes: dict[str, int]
    processes: list[str]
    files: list[str]
    codes: list[int | None]
    signals: int


@pytest.fixture(scope="module")
def stopped(photos: Path, tiny_bundle: str, tmp_path_factory: pytest.TempPathFactory) -> Stopped:
    folder = tmp_path_factory.mktemp("stopped")
    temp = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))
    where = ("--input", photos, "--output", "table", "--model", tiny_bundle)
    job = Job(folder, *where, *SETTINGS, *WORKERS, TMPDIR=str(temp))
    try:
        job.wait_for_files(folder / "table" / "latents", 1)
        listened_on = listening(processes(job))
        modes = {path.name: stat.S_IMODE(path.lstat().st_mode) for path in temp.glob("restyle-*")}
        signals = 0
        while job.process.poll() is None:
            signals += 1
            job.process.terminate()
            time.sleep(PACE_S)
        run = job.ended()
        left = left_after_a_moment(job)
        files = [path.name for path in temp.glob("restyle-*")]
    finally:
        job.process.kill()
        shutil.rmtree(temp, ignore_errors=True)
    runs = (folder / "table" / "_runs").glob("*.json")
    codes = [json.loads(path.read_text())["exit_code"] for path in runs]
    return Stopped(run, listened_on, modes, left, files, codes, signals)


def test_it_listens_on_the_loopback_alone(stopped: Stopped) -> None:
    assert stopped.listened_on
    assert stopped.listened_on <= LOOPBACK


def test_only_its_user_enters_what_it_writes(stopped: Stopped) -> None:
    assert stopped.modes
    assert {mode & 0o077 for mode in stopped.modes.values()} == {0}


def test_signals_while_it_ends_change_nothing(stopped: Stopped) -> None:
    assert stopped.run.code == 1, stopped.run.err
    assert "Traceback" not in stopped.run.err
    assert (stopped.run.line["exit_code"], stopped.run.line["errors"]) == (1, [])
    assert "rejects_by_reason" in stopped.run.line, "the account of a run, not of a request"
    assert stopped.codes == [1]
    assert stopped.signals >= 20


def test_nothing_is_left_of_it(stopped: Stopped) -> None:
    assert stopped.processes == []
    assert stopped.files == []
