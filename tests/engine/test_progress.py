from __future__ import annotations

import json
from collections import Counter
from types import SimpleNamespace

import pytest

from pipeline.engine import progress
from pipeline.engine import tally as tally_module
from pipeline.engine.logs import EventLog
from pipeline.engine.plan import Found
from pipeline.engine.progress import Progress, format_seconds
from pipeline.engine.tally import Tally

NOW = 10_000.0


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands still: the time between two lines of a test is no part of a run."""
    still = SimpleNamespace(monotonic=lambda: NOW)
    for module in (progress, tally_module):
        monkeypatch.setattr(module, "time", still)


def tally(seconds: float, **counts: object) -> Tally:
    return Tally(started=NOW - seconds, **counts)  # type: ignore[arg-type]


def found(shards: int, complete: bool = True) -> Found:
    return Found(shards=shards, bytes=1000, complete=complete)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (75, "1:15"), (3700, "1:01:40")]
)
def test_seconds_read_as_a_clock(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_a_line_says_it_all() -> None:
    reasons = Counter(no_face=2, truncated=1)
    counts = tally(100, parts=7, faces=200, shards=1, bytes=0, reasons=reasons)
    assert Progress(counts, found(3)).line == (
        "1:40  shards 1/3  parts 7  faces 200 (2.0/s)  rejects 3 (no_face 2, truncated 1)  left ?"
    )


def test_the_time_left_is_not_that_of_the_start() -> None:
    counts = tally(60)
    shown = Progress(counts, found(1))
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
    with Progress(counts, found(1)) as shown:
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
    shown = Progress(tally(10, faces=3, reasons=Counter(no_face=2)), found(4))
    with shown.console.capture() as captured:
        shown.console.print(shown._table())
    assert "no_face" in captured.get()
    assert "0/4" in captured.get()


def test_while_the_input_is_listed_the_total_and_the_end_are_not_known() -> None:
    counts = tally(100, shards=1, bytes=200, first_seconds=60, first_bytes=100)
    assert Progress(counts, found(1)).remaining != "?"
    shown = Progress(counts, found(1, complete=False))
    assert shown.remaining == "?"
    assert shown.shards == "1/1+"


def test_progress_is_an_event_on_request(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "PLAIN_EVERY_S", 0.0)
    with Progress(tally(100, faces=3), found(2), EventLog(json_lines=True)) as shown:
        shown.update()
    line = json.loads(capfd.readouterr().err)
    assert (line["event"], line["faces"], line["shards_to_do"]) == ("progress", 3, 2)
    assert line["seconds_left"] is None
