from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pyarrow as pa
import pytest

from pipeline.engine.messages import (
    FaceBatch,
    Failure,
    Message,
    PartDone,
    SampleBatch,
    ShardEnd,
    ShardTask,
    from_row,
    to_row,
)
from pipeline.engine.stages.base import Stage, StageResources, Worker, results
from pipeline.errors import StorageError
from pipeline.storage import LeftOut, ReadOptions, Shard
from pipeline.table import Counts

SHARD = Shard("s", "/in/s.tar", "tar", 1, "e")
TABLE = pa.table({"a": [1, None], "b": pa.array([b"x", b""], pa.large_binary())})
EMPTY = pa.schema([("a", pa.list_(pa.float32(), 4))]).empty_table()
BATCH = SampleBatch(SHARD, 3, Counts(samples=2), TABLE)
MESSAGES = (
    ShardTask(SHARD, 7, frozenset({2, 1}), 3, options=ReadOptions(keep_columns={"a": "int64"})),
    BATCH,
    replace(BATCH, start=EMPTY),
    FaceBatch(SHARD, 3, Counts(samples=2, stage_seconds=Counter({"read": 1})), EMPTY, TABLE),
    PartDone(SHARD, 3, Counts()),
    ShardEnd(SHARD, 4, 5, LeftOut({".json": 1})),
    Failure(SHARD, 3, "read", "OSError: gone", "Traceback", "10.0.0.1"),
)


class Double(Stage):
    """Gives each batch of samples twice; fails where it is told to."""

    name = "align"
    takes = SampleBatch
    resources = StageResources("aligner", cpus=1)

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def process(self, batch: SampleBatch) -> Iterator[Message]:
        yield batch
        if self.error:
            raise self.error
        yield batch


@pytest.mark.parametrize("message", MESSAGES, ids=lambda one: type(one).__name__)
def test_a_message_survives_the_way_between_stages(message: Message) -> None:
    row = to_row(message)
    assert from_row(row) == message
    assert row.keys() == to_row(BATCH).keys(), "all blocks have one schema"


def test_an_error_becomes_a_failure_of_its_part_alone() -> None:
    _, failure = results(Double(ValueError("two\nlines")), BATCH)
    assert isinstance(failure, Failure)
    assert (failure.shard_id, failure.part, failure.stage) == ("s", 3, "align")
    assert failure.error.startswith("ValueError: two lines (test_messages.py:")
    assert failure.trace.startswith("Traceback (most recent call last):")
    assert "in process" in failure.trace


def test_an_error_raised_on_purpose_names_no_line_of_the_code() -> None:
    failure = Failure.of(BATCH, "read", StorageError("the shard 's' is damaged"))
    assert (failure.error, failure.trace) == ("StorageError: the shard 's' is damaged", "")


def test_other_messages_pass_through() -> None:
    worker = Worker(Double(ValueError("not called")))
    for message in MESSAGES[3:]:
        row = to_row(message)
        assert worker(row) is row


def test_a_stage_is_timed_unless_it_notes_its_own_seconds() -> None:
    first, _ = results(Double(), replace(BATCH, counts=Counts()))
    assert isinstance(first, SampleBatch)
    assert first.counts.stage_seconds["align"] > 0
    noted = replace(BATCH, counts=Counts(stage_seconds=Counter(align=9)))
    assert [one.counts.stage_seconds for one in results(Double(), noted)] == [  # type: ignore[attr-defined]
        {"align": 9}
    ] * 2


def test_a_failure_names_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2hunter2")
    failure = Failure.of(BATCH, "read", OSError("denied for hunter2hunter2"))
    assert "hunter2" not in failure.error + failure.trace
