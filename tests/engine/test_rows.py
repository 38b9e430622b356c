from __future__ import annotations

import pyarrow as pa

from pipeline.engine.rows import Row, blank_row, failed_row, pack, run_stage, unpack
from pipeline.errors import StorageError


def raises(_: Row) -> Row:
    raise ValueError("two\nlines")


def test_a_table_survives_the_way_between_stages() -> None:
    table = pa.table({"a": [1, None], "b": pa.array([b"x", b""], pa.large_binary())})
    assert unpack(pack(table)).equals(table)


def test_a_table_without_rows_keeps_its_columns() -> None:
    schema = pa.schema([("a", pa.list_(pa.float32(), 4))])
    assert unpack(pack(schema.empty_table())).schema == schema


def test_a_stage_that_fails_costs_its_part_alone() -> None:
    row = run_stage("align", raises, blank_row("part", "s", 3) | {"payload": b"images"})
    assert (row["kind"], row["shard_id"], row["part"], row["payload"]) == ("failed", "s", 3, b"")
    assert row["error"].startswith("align: ValueError: two lines (test_rows.py:")
    assert row["trace"].startswith("Traceback (most recent call last):")
    assert "in raises" in row["trace"]


def test_an_error_that_is_raised_on_purpose_names_no_line_of_the_code() -> None:
    def damaged(_: Row) -> Row:
        raise StorageError("the shard 's' is damaged")

    row = run_stage("read", damaged, blank_row("part", "s", 3))
    assert row["error"] == "read: StorageError: the shard 's' is damaged"
    assert row["trace"] == ""


def test_what_is_no_part_passes_through() -> None:
    for kind in ("end", "failed"):
        row = blank_row(kind, "s", 3)
        assert run_stage("align", raises, row) is row


def test_a_stage_is_timed() -> None:
    assert run_stage("align", lambda row: row, blank_row("part", "s", 0))["align_seconds"] > 0


def test_all_rows_have_one_schema() -> None:
    failed = failed_row("s", 0, "read", OSError("gone"))
    assert failed.keys() == blank_row("part", "s", 0).keys()


def test_an_error_of_several_kinds_names_no_secret(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2hunter2")
    row = failed_row("s", 0, "read", OSError("denied for hunter2hunter2"))
    assert "hunter2" not in row["error"] + row["trace"]
