from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import child_process
from pipeline.alignment import Alignment, AlignmentSettings, IsolatedAligner, Outcome, worker
from pipeline.child_process import Child
from pipeline.errors import PipelineError
from pipeline.images import Rejection, RejectReason, decode
from tests.alignment.faulty import FaultyAligner, UnbuildableAligner, abrupt, curt, stuck
from tests.child_processes import is_running, wait_until
from tests.images.encoded import encode, picture

GOOD = encode(picture(), "PNG")
SETTINGS = AlignmentSettings(output_size=(64, 64), memory_limit_mib=4096)
HASTY = replace(SETTINGS, row_timeout_s=3)


@pytest.fixture
def isolated() -> Iterator[IsolatedAligner]:
    with IsolatedAligner(SETTINGS, factory=FaultyAligner) as aligner:
        yield aligner


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[IsolatedAligner]:
    """Aligner that fails if a message stalls for 2 s; the time limit of an image is unchanged."""
    monkeypatch.setattr(worker, "Child", lambda command, _: Child(command, patience_s=2))
    monkeypatch.setattr(child_process, "_END_TIMEOUT_S", 0.5)
    with IsolatedAligner(SETTINGS, factory=FaultyAligner) as aligner:
        yield aligner


def reasons(outcomes: list[Outcome]) -> list[str]:
    return [outcome.reason.value if isinstance(outcome, Rejection) else "" for outcome in outcomes]


def test_each_content_gets_one_outcome_in_order(isolated: IsolatedAligner) -> None:
    wide = encode(picture(200, 100), "PNG")
    outcomes = list(isolated.process([GOOD, b"hello", wide, GOOD[:200]]))
    assert reasons(outcomes) == ["", "unsupported_format", "", "truncated"]
    assert [o.faces[0].width for o in outcomes if isinstance(o, Alignment)] == [80, 200]


def test_results_equal_those_of_the_aligner(isolated: IsolatedAligner) -> None:
    (outcome,) = isolated.process([GOOD])
    assert isinstance(outcome, Alignment)
    (there,), (here,) = outcome.faces, FaultyAligner(SETTINGS).align(GOOD).faces
    assert np.array_equal(there.pixels, here.pixels)
    assert there.sharpness == here.sharpness


@pytest.mark.parametrize(
    ("order", "says"),
    [
        (b"!segfault", "signal 11 (SIGSEGV)"),
        (b"!exit 3", "exit code 3"),
        (b"!answer 1000", "signal 9 (SIGKILL)"),
        (b"!answer 0", "lived on"),
    ],
)
def test_an_image_that_kills_its_process_is_one_reject(
    isolated: IsolatedAligner, order: bytes, says: str
) -> None:
    outcomes = list(isolated.process([GOOD, order, GOOD]))
    assert reasons(outcomes) == ["", "crashed", ""]
    assert isinstance(outcomes[1], Rejection)
    assert says in outcomes[1].detail


@pytest.mark.parametrize("order", [b"!sleep 600", b"!hold 600"])
def test_an_image_that_hangs_is_one_reject(order: bytes) -> None:
    with IsolatedAligner(HASTY, factory=FaultyAligner) as aligner:
        outcomes = list(aligner.process([order]))
        aligner.settings = SETTINGS  # a busy machine may need longer for the next image
        assert reasons([*outcomes, *aligner.process([GOOD])]) == ["timed_out", ""]


def test_a_hang_within_an_answer_is_one_reject(impatient: IsolatedAligner) -> None:
    outcomes = list(impatient.process([b"!answer 1000 %d" % signal.SIGSTOP, GOOD]))
    assert reasons(outcomes) == ["crashed", ""]
    assert isinstance(outcomes[0], Rejection)
    assert "lived on" in outcomes[0].detail


def test_an_image_not_taken_is_tried_again(impatient: IsolatedAligner) -> None:
    rows = impatient.process([GOOD, b"x" * 20_000_000])
    next(rows)
    assert impatient.pid is not None
    os.kill(impatient.pid, signal.SIGSTOP)
    assert reasons(list(rows)) == ["unsupported_format"]


def test_an_image_over_the_memory_limit_is_rejected(isolated: IsolatedAligner) -> None:
    (good, greedy, _) = isolated.process([GOOD, b"!memory 8000000000", GOOD])
    assert isinstance(good, Alignment)
    assert isinstance(greedy, Rejection)
    assert greedy.reason is RejectReason.CRASHED
    assert "4096 MiB" in greedy.detail


def test_an_unexpected_error_keeps_the_process(isolated: IsolatedAligner) -> None:
    rows = isolated.process([GOOD, b"!bug abc", GOOD])
    next(rows)
    pid = isolated.pid
    assert reasons(list(rows)) == ["crashed", ""]
    assert isolated.pid == pid


def test_an_image_of_a_killed_process_is_retried(isolated: IsolatedAligner, tmp_path: Path) -> None:
    order = b"!die_once " + str(tmp_path / "died").encode()
    assert list(isolated.process([order])) == [Alignment([])]


def test_a_child_killed_between_images_is_replaced(isolated: IsolatedAligner) -> None:
    rows = isolated.process([GOOD, GOOD])
    next(rows)
    assert isolated.pid is not None
    os.kill(isolated.pid, signal.SIGKILL)
    assert isinstance(next(rows), Alignment)


def test_decoder_messages_are_not_printed(
    isolated: IsolatedAligner, capfd: pytest.CaptureFixture[str]
) -> None:
    broken = bytearray(encode(picture(), "TIFF", compression="tiff_lzw"))
    broken[20_000:20_064] = b"\xff" * 64
    with pytest.raises(Rejection):
        decode(bytes(broken))
    assert capfd.readouterr().err  # in this process libtiff prints a message
    assert reasons(list(isolated.process([bytes(broken)]))) == ["undecodable"]
    assert capfd.readouterr() == ("", "")


def test_large_rows_pass_both_ways() -> None:
    settings = AlignmentSettings(prealigned=True, output_size=(2000, 3000))
    noise = np.random.default_rng(0).integers(0, 256, (2000, 3000, 3), dtype=np.uint8)
    content = encode(Image.fromarray(noise), "BMP")
    with IsolatedAligner(settings) as aligner:
        outcomes = list(aligner.process([content, b"x" * 50_000_000, content]))
    assert reasons(outcomes) == ["", "unsupported_format", ""]
    assert isinstance(outcomes[2], Alignment)
    assert np.array_equal(outcomes[2].faces[0].pixels, noise)


def test_an_interrupt_leaves_no_stale_answer(isolated: IsolatedAligner) -> None:
    def ring(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, ring)
    try:
        with pytest.raises(KeyboardInterrupt):
            list(isolated.process([b"!ring %d" % signal.SIGUSR1]))
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert reasons(list(isolated.process([b"hello", GOOD]))) == ["unsupported_format", ""]


def test_close_ends_the_child(isolated: IsolatedAligner) -> None:
    next(isolated.process([GOOD]))
    pid = isolated.pid
    assert pid is not None
    isolated.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert isolated.pid is None


@pytest.mark.parametrize(
    ("factory", "says"),
    [
        (UnbuildableAligner, "no model for largest"),
        (abrupt, "exit code 9"),
        (curt, "signal 9 \\(SIGKILL\\)"),
        (stuck, "lived on"),
    ],
)
def test_a_child_that_cannot_start_is_an_error(factory: object, says: str) -> None:
    aligner = IsolatedAligner(HASTY, factory=factory)  # type: ignore[arg-type]
    with pytest.raises(PipelineError, match=says):
        next(aligner.process([GOOD]))


PARENT = """
import sys
from pipeline.alignment import AlignmentSettings, IsolatedAligner
from tests.alignment.faulty import FaultyAligner
settings = AlignmentSettings(row_timeout_s=float(sys.argv[1]))
aligner = IsolatedAligner(settings, factory=FaultyAligner)
list(aligner.process([sys.argv[2].encode()]))
sys.stdin.read()
"""


@pytest.mark.parametrize(("seconds", "order"), [(60, "!write_pid"), (4, "!write_pid_and_hold")])
def test_a_killed_parent_leaves_no_orphan(seconds: int, order: str, tmp_path: Path) -> None:
    root, pid_file = Path(__file__).parents[2], tmp_path / "pid"
    command = [sys.executable, "-c", PARENT, str(seconds), f"{order} {pid_file}"]
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE) as parent:
        assert wait_until(pid_file.exists)  # the child has begun its image
        parent.kill()
    pid = int(pid_file.read_text())
    # A hung orphan ends 5 s after its time limit.
    assert wait_until(lambda: not is_running(pid))
