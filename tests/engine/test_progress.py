from __future__ import annotations

import time
from collections import Counter

import pytest

from pipeline.engine import progress
from pipeline.engine.progress import Progress, Tally, format_seconds


def tally(seconds: float, **counts: object) -> Tally:
    return Tally(started=time.monotonic() - seconds, **counts)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (75, "1:15"), (3700, "1:01:40")]
)
def test_seconds_read_as_a_clock(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_a_line_says_it_all() -> None:
    reasons = Counter(no_face=2, truncated=1)
    counts = tally(100, parts=7, faces=200, shards=1, bytes=0, reasons=reasons)
    assert Progress(counts, 3, 1000).line == (
        "1:40  shards 1/3  parts 7  faces 200 (2.0/s)  rejects 3 (no_face 2, truncated 1)  left ?"
    )


def test_the_time_left_is_not_that_of_the_start() -> None:
    counts = tally(60)
    shown = Progress(counts, 1, 1000)
    assert shown.remaining == "?"
    counts.bytes, counts.first_seconds, counts.first_bytes = 100, 60, 100
    assert shown.remaining == "?", "one part is no rate"
    counts.started -= 10
    counts.bytes = 200
    assert shown.remaining == "1:20"


def test_lines_are_plain_and_rare_where_there_is_no_terminal(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = tally(100, faces=3)
    with Progress(counts, 1, 1000) as shown:
        shown.update()
        shown.update()
        monkeypatch.setattr(progress, "PLAIN_EVERY_S", 0.0)
        shown.update()
    out, err = capfd.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == 2
    assert all("faces 3" in line and "\x1b" not in line for line in lines)


def test_a_terminal_shows_each_reason() -> None:
    shown = Progress(tally(10, faces=3, reasons=Counter(no_face=2)), 4, 1000)
    with shown.console.capture() as captured:
        shown.console.print(shown._table())
    assert "no_face" in captured.get()
    assert "0 of 4" in captured.get()
