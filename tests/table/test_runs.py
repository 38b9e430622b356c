from datetime import UTC, datetime, timedelta

import pytest

from pipeline.errors import TableError
from pipeline.table import open_table
from pipeline.table.runs import put_run
from pipeline.table.status import table_status
from tests.table.rows import writer

START = datetime(2026, 1, 1, tzinfo=UTC)
COUNTS = ("shards", "done_shards", "bytes", "done_bytes")


def record(table, minute, **facts):
    run = {"started": f"minute {minute}", "errors": [], **facts}
    put_run(table.store, START + timedelta(minutes=minute), "ab", run)


def test_the_view_has_one_row_per_run_in_order(tmp_path):
    table = writer(tmp_path)
    record(table, 2, faces=3, identity_missed=2, stage_seconds={"align": 1.5}, exit_code=0)
    record(table, 1, faces=1, errors=["a", "b"], exit_code=1)
    rows = open_table(str(tmp_path)).sql(
        "SELECT run, faces, identity_missed, exit_code, errors, align_seconds FROM runs"
        " ORDER BY run"
    )
    assert rows["run"].tolist() == ["20260101T000100Z-ab.json", "20260101T000200Z-ab.json"]
    assert rows["faces"].tolist() == [1, 3]
    assert rows["identity_missed"].tolist()[1] == 2
    assert rows["errors"].tolist() == [2, 0]
    assert rows["align_seconds"].isna().tolist() == [True, False]


def test_other_files_among_the_records_are_ignored(tmp_path):
    table = writer(tmp_path)
    record(table, 1, exit_code=0, found={"complete": True, **dict.fromkeys(COUNTS, 0)})
    table.store.put("_runs/notes.txt", b"started on Monday")
    (run,) = table_status(str(tmp_path)).runs
    assert run["run"] == "20260101T000100Z-ab"


def test_a_table_without_runs_has_an_empty_view(tmp_path):
    writer(tmp_path)
    assert open_table(str(tmp_path)).sql("SELECT * FROM runs").empty


def test_seconds_per_face_cover_all_runs(tmp_path):
    table = writer(tmp_path)
    record(table, 1, faces=30, inversion_seconds=6.0)
    record(table, 2, faces=10, inversion_seconds=4.0, exit_code=1)
    record(table, 3, faces=0, inversion_seconds=0.0)  # found everything done
    assert open_table(str(tmp_path)).seconds_per_face() == pytest.approx(0.25)


def test_seconds_are_unknown_without_a_measurement(tmp_path):
    table = writer(tmp_path)
    assert open_table(str(tmp_path)).seconds_per_face() is None
    record(table, 1, faces=30)
    assert open_table(str(tmp_path)).seconds_per_face() is None


@pytest.mark.parametrize(
    "facts",
    [
        {"errors": 3},
        {"found": [1]},
        {"found": {"complete": True, "shards": 2}},
        {"stage_seconds": [1]},
        {"stage_seconds": {"align": "x"}},
        {"samples": "x"},
        {"faces": True},
        {"parts": 10**30},
        {"updated": "yesterday"},
    ],
)
def test_an_invalid_run_record_is_named(tmp_path, facts):
    table = writer(tmp_path)
    record(table, 1, **facts)
    for read in (table_status, lambda uri: open_table(uri).sql("SELECT * FROM runs")):
        with pytest.raises(TableError, match=r"_runs/2026.*is not the record of a run"):
            read(str(tmp_path))
