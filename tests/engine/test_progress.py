from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.engine.console import pending, progress, screen
from pipeline.engine.console.pace import Pace, format_seconds
from pipeline.engine.console.pending import ClusterState, StageState
from pipeline.engine.console.progress import (
    QUIET_S,
    Progress,
    describe_active,
    describe_waiting,
    enter_phase,
    shared_progress,
)
from pipeline.engine.events import EventLog
from pipeline.engine.plan import Backlog
from pipeline.engine.stages import STAGES
from pipeline.table import Counts, RunRecord
from pipeline.table import runs as runs_module

NOW = 10_000.0
pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Clock that stands still, as the time between two lines of a test must not count."""
    still = SimpleNamespace(now=NOW, monotonic=lambda: still.now)
    for module in (progress, runs_module):
        monkeypatch.setattr(module, "time", still)
    return still


def run(seconds: float, **counts: object) -> RunRecord:
    return RunRecord(Counts(**counts), clock=NOW - seconds)  # type: ignore[arg-type]


def backlog_of(**counts: object) -> Backlog:
    given = {"shards": 3, "bytes": 1000, "images": 400, "complete": True}
    return Backlog(**(given | counts))  # type: ignore[arg-type]


def display_after(record: RunRecord, expected: Backlog, *parts: tuple[float, int]) -> Progress:
    """Return a hidden progress after `parts`: (seconds, images so far)."""
    display = Progress()
    display.phase = ""
    display.follow(record, expected)
    display.started = record.clock
    for number, (seconds, samples) in enumerate(parts, start=1):
        record.counts = replace(record.counts, parts=number, samples=samples)
        record.last_part_seconds = seconds
        display.update()
    return display


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (75, "1:15"), (3700, "1:01:40")]
)
def test_seconds_read_as_a_clock(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.mark.usefixtures("clock")
def test_a_line_says_it_all() -> None:
    record = run(100, faces=90, shards=1, rejects=10, reasons=Counter(no_face=8, truncated=2))
    display = display_after(record, backlog_of(), (40, 20), (90, 100))
    display.set_stages([StageState("align", 2, 0, 1, 2), StageState("invert", 1, 0, 0, 1)])
    assert " · ".join(display.words()) == (
        "1:40 · images 100 of 400 · 25 % · 2:58 left · 1.6 images/s · faces 90 · "
        "rejects 10 (no_face 8, truncated 2) · shards 1 of 3 · aligning 2, inverting 1"
    )
    assert "rejects 10" in display.words(short=True), "a terminal's line leaves out reasons"


@pytest.mark.usefixtures("clock")
def test_what_was_done_before_counts_as_done() -> None:
    display = display_after(run(9), backlog_of(done_samples=600), (5, 100))
    assert (display.images, display.share) == ("images 700 of 1000", 0.7)


@pytest.mark.usefixtures("clock")
def test_images_of_archives_are_estimated() -> None:
    expected = backlog_of(images=0, uncounted_bytes=1000)
    display = display_after(run(9, bytes=0), expected)
    assert (display.images, display.share) == ("images 0", None), "nothing was read yet"
    display = display_after(run(9, bytes=100), expected, (5, 7))
    assert (display.images, display.share) == ("images 7 of about 70", 0.1)
    expected.limit = 50
    assert display.images == "images 7 of about 50"
    expected.limit, expected.uncounted_done, expected.done_samples = None, 20, 20
    assert display.images == "images 27 of about 70"


@pytest.mark.usefixtures("clock")
def test_totals_are_unknown_during_the_listing() -> None:
    parts = ((40, 20), (90, 100))
    assert display_after(run(100), backlog_of(), *parts).seconds_left is not None
    display = display_after(run(100, shards=1), backlog_of(shards=1, complete=False), *parts)
    assert (display.seconds_left, display.share) == (None, None)
    assert (display.shards, display.images) == ("1 of 1+", "images 100 of 400+")


@pytest.mark.usefixtures("clock")
def test_chosen_images_use_bytes_as_progress() -> None:
    record = run(100)
    display = display_after(record, backlog_of(chosen=True))
    for seconds, size in ((50, 100), (60, 200)):
        parts = record.counts.parts + 1
        record.counts = replace(record.counts, parts=parts, bytes=size)
        record.last_part_seconds = seconds
        display.update()
    assert (display.images, display.share) == ("images 0", 0.2)
    assert display.seconds_left is not None


def test_the_time_left_follows_the_recent_pace() -> None:
    pace = Pace()
    assert pace.seconds_left(5, 100) is None
    pace.part(60, 10)
    assert pace.seconds_left(60, 90) is None, "one part gives no pace"
    for number in range(1, 9):
        pace.part(60 + 10 * number, 10 + 10 * number)
    assert (pace.rate(140), pace.seconds_left(140, 10)) == (1.0, 10.0)
    assert pace.seconds_left(144, 10) == 6.0, "it counts down between two parts"
    later, much_later = pace.seconds_left(160, 10), pace.seconds_left(1000, 10)
    assert later is not None
    assert much_later is not None
    assert 0 < later < much_later, "and up where no part comes any more"


def test_two_parts_of_one_moment_are_no_pace() -> None:
    pace = Pace()
    pace.part(60, 10)
    pace.part(60.01, 20)
    assert pace.rate(61) is None


READING = StageState("read", 0, 0, 3, 2)
IDLE = [StageState(name, 1, 0, 0, 0) for name in ("align", "invert", "write")]


@pytest.mark.parametrize(
    ("stages", "parts", "cluster", "expected"),
    [
        ([READING, *IDLE], 0, False, "waiting for storage"),
        ([READING, StageState("align", 1, 0, 0, 1), *IDLE[1:]], 0, False, ""),
        ([READING, IDLE[0], StageState("invert", 0, 1, 0, 0)], 0, False, "loading the model"),
        ([READING, StageState("align", 0, 1, 0, 0), IDLE[1]], 0, False, "starting the aligners"),
        ([IDLE[0], StageState("invert", 0, 1, 4, 0)], 7, False, "waiting for an inverter"),
        ([IDLE[0], StageState("invert", 0, 1, 4, 0)], 0, True, "waiting for 1 of 1 inverters"),
        ([IDLE[0], StageState("invert", 0, 0, 4, 0)], 0, True, "waiting for an inverter"),
        ([], 0, False, ""),
    ],
)
def test_what_is_awaited_has_a_name(
    stages: list[StageState],
    parts: int,
    cluster: bool,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(progress, "in_cluster", lambda: cluster)
    text = describe_waiting(stages, parts)
    assert text.startswith(expected)
    assert bool(text) == bool(expected)


def test_a_cluster_names_what_is_pending_in_numbers(
    clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "in_cluster", lambda: True)
    monkeypatch.setattr(progress, "storage_retries", lambda: 1)
    display = display_after(run(100), backlog_of(), (90, 100))
    display.set_stages([IDLE[0], StageState("invert", 0, 1, 3, 0, requested=3, gpus=1.0)])
    display.cluster = ClusterState(alive=2, seen=3, unused=1, cpus=4.0, gpus=0.0, retries=2)
    assert display.words()[1:5] == [
        "waiting for 4 of 4 inverters (1 GPU each)",
        "2 of 3 nodes alive, 1 not used",
        "4 CPUs, 0 GPUs",
        "storage: 3 retries",
    ]
    display.set_stages([IDLE[0], StageState("invert", 2, 0, 3, 2, requested=2, gpus=1.0)])
    assert display.words()[1] == "asked for 2 of 4 inverters (1 GPU each)"
    display.set_stages(IDLE)
    assert display.words()[1].startswith("images"), "nothing is awaited"
    clock.now += QUIET_S
    assert display.words()[1:3] == ["no part for 0:30", "2 of 3 nodes alive, 1 not used"]


def test_what_runs_is_counted() -> None:
    assert describe_active([READING, *IDLE]) == "reading 2"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line is due at once, and then again and again."""
    monkeypatch.setattr(progress, "PLAIN_EVERY_S", 0.01)


def wait_for_lines(read: Callable[[], str], count: int) -> list[str]:
    """Whole lines, when there are so many."""
    text = ""
    while text.count("\n") < count:
        text += read()
    return text.splitlines()


@contextmanager
def piped() -> Iterator[Callable[[], str]]:
    """Makes stderr a pipe for the block; gives what is written to it, as it comes.

    Not a fixture: pytest puts its own stderr in place between a fixture and the test.
    """
    ours, theirs = os.pipe()
    before = sys.stderr
    with os.fdopen(theirs, "w") as sys.stderr:
        try:
            yield lambda: os.read(ours, 65536).decode()
        finally:
            sys.stderr = before
    os.close(ours)


@pytest.mark.usefixtures("quick")
def test_a_log_continues_while_the_main_thread_blocks() -> None:
    with piped() as err, Progress():
        enter_phase("starting Ray")
        lines: list[str] = []
        while sum("starting Ray" in line for line in lines) < 3:
            lines += wait_for_lines(err, 1)  # all that this thread does meanwhile
    assert all(re.fullmatch(r"0:\d\d  starting( Ray)?", line) for line in lines)


@pytest.mark.usefixtures("quick")
def test_lines_come_also_while_stderr_is_put_aside() -> None:
    with piped() as err, Progress():
        enter_phase("starting Ray")
        kept = os.dup(sys.stderr.fileno())
        with Path(os.devnull).open("w") as nowhere:  # as the start of Ray does
            os.dup2(nowhere.fileno(), sys.stderr.fileno())
            assert wait_for_lines(err, 1)
        os.dup2(kept, sys.stderr.fileno())
        os.close(kept)


@pytest.mark.usefixtures("quick")
def test_progress_is_an_event_on_request() -> None:
    record = RunRecord(Counts(faces=3, rejects=1, reasons=Counter(no_face=1)))
    with piped() as err, Progress(json_lines=True) as display:
        enter_phase("starting Ray")
        events: list[dict[str, Any]] = []
        while (
            not events or events[-1] | {"phase": "starting Ray", "event": "waiting"} != events[-1]
        ):
            events += [json.loads(line) for line in wait_for_lines(err, 1)]
        assert {"phase", "waiting"} == {event["event"] for event in events}
        display.follow(record, backlog_of(shards=2))
        display.set_stages([READING])
        events = []
        while not [event for event in events if event["event"] == "progress"]:
            events += [json.loads(line) for line in wait_for_lines(err, 1)]
    event = events[-1]
    assert (event["faces"], event["shards_to_do"], event["samples_to_do"]) == (3, 2, 400)
    assert (event["seconds_left"], event["rejects"]) == (None, {"no_face": 1})
    assert event["stages"]["read"]["active"] == 2


def test_a_failure_is_printed_once_as_it_happens(capfd: pytest.CaptureFixture[str]) -> None:
    with shared_progress(json_lines=False) as display:
        with shared_progress(json_lines=False) as same:
            assert same is display
        for _ in range(2):
            EventLog().on_failure("a", "shard 'a', part 0: invert: OSError: x")
    assert capfd.readouterr().err == "failed: shard 'a', part 0: invert: OSError: x\n"
    assert (display.failures, Progress.current) == (2, None)


def test_no_secret_is_shown(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret")
    with Progress() as display:
        display.failed("the key planted-secret is wrong")
    assert capfd.readouterr().err == "failed: the key *** is wrong\n"


@pytest.mark.usefixtures("quick")
def test_a_closed_stderr_does_not_stop_the_job(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    with os.fdopen(theirs, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        with Progress() as display:
            display.enter_phase("starting Ray")
            display.say("a line")
            display.stop("Ctrl-C")
        monkeypatch.undo()
    monkeypatch.setattr(sys, "stderr", None)
    with Progress() as display:
        display.enter_phase("starting Ray")


def test_ctrl_c_is_shown_at_once() -> None:
    before = signal.getsignal(signal.SIGINT)
    result: list[str] = []
    with piped() as err:

        def hear(*_: object) -> None:
            # The main thread comes to it, and does nothing until the line is there.
            result.append("".join(wait_for_lines(err, 1)))

        signal.signal(signal.SIGINT, hear)
        try:
            with Progress():
                os.kill(os.getpid(), signal.SIGINT)
                assert result
        finally:
            signal.signal(signal.SIGINT, before)
    assert "stopping (Ctrl-C)" in result[0]


TERMINAL = """
import sys, threading, warnings
from pipeline.engine.console.progress import Progress, enter_phase
with Progress() as progress:
    enter_phase("starting Ray")
    sys.stdin.readline()
    enter_phase("\\u6a21\\u578b " * 100)
    sys.stdin.readline()
    progress.say("a line for people")
    print("one of a library")
    print("and one of another", file=sys.stderr)
    sys.stdin.readline()
print("the end")
"""


class Terminal:
    """A process at a pseudo-terminal of 40 columns."""

    def __init__(self, code: str, **environment: str) -> None:
        self.fd, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
        settings = termios.tcgetattr(theirs)
        settings[3] &= ~termios.ECHO
        termios.tcsetattr(theirs, termios.TCSANOW, settings)
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=os.environ | {"TERM": "xterm", "COLUMNS": ""} | environment,
        )
        os.close(theirs)
        self.text = ""

    def wait_for(self, words: str) -> str:
        """Return the output since the last call, up to and including `words`."""
        while words not in self.text:
            self.text += os.read(self.fd, 65536).decode()
        end = self.text.index(words) + len(words)
        came, self.text = self.text[:end], self.text[end:]
        return came

    def press_enter(self) -> None:
        os.write(self.fd, b"\n")

    def ended(self) -> str:
        """Wait for the process; return the rest of its output."""
        with suppress(OSError):  # EIO: the other end is closed
            while True:
                self.text += os.read(self.fd, 65536).decode()
        assert self.process.wait() == 0
        os.close(self.fd)
        return self.text


def test_a_terminal_has_one_ticking_line() -> None:
    terminal = Terminal(TERMINAL, NO_COLOR="1")
    assert re.fullmatch(r"0:0\d · starting Ray", terminal.wait_for(" · starting Ray"))
    assert re.fullmatch(r"\r\x1b\[K0:\d\d · starting Ray", terminal.wait_for(" · starting Ray"))
    terminal.press_enter()
    terminal.wait_for("模")
    terminal.press_enter()
    before = terminal.wait_for("a line for people\r\n")
    assert max(map(screen.cell_len, re.split(r"\r\x1b\[K|\r\n", before))) <= 39
    after = terminal.wait_for("and one of another\r\n")
    assert re.search(r"模.*\r\x1b\[Kone of a library\r\n0:\d\d · 模", after)
    terminal.press_enter()
    assert re.search(r"模.*\r\x1b\[Kthe end\r\n$", terminal.ended()), "the line is gone"


def test_a_dumb_terminal_is_a_log() -> None:
    terminal = Terminal(TERMINAL, TERM="dumb")
    for _ in range(3):
        terminal.press_enter()
    assert terminal.ended() == (
        "a line for people\r\none of a library\r\nand one of another\r\nthe end\r\n"
    )


def test_nothing_of_it_is_left() -> None:
    before = threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))
    streams, wakeup = (sys.stdout, sys.stderr), signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup)
    with Progress():
        enter_phase("starting Ray")
    assert (sys.stdout, sys.stderr) == streams
    assert signal.set_wakeup_fd(wakeup) == wakeup
    assert (threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))) == before


def test_every_stage_has_a_plural() -> None:
    assert {stage.name: f"{stage.resources.worker}s" for stage in STAGES} == pending.PLURALS
