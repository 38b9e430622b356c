"""Progress of a table, from its storage alone."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.errors import InputError
from pipeline.storage import Shard, Store, list_shards
from pipeline.table import PartRecord, TableWriter
from pipeline.table import part_index as part_index_module
from pipeline.table import status as status_module
from pipeline.table.part_index import write_part_index
from pipeline.table.parts import read_metadata
from pipeline.table.runs import put_run
from pipeline.table.status import table_status
from tests.storage.archives import write_tar
from tests.table.rows import face_row, reject_row, shard, state_of, write_shard, writer


def record(table: TableWriter, **facts: object) -> None:
    started = datetime(2026, 1, 2, tzinfo=UTC)
    document = {"started": started.isoformat(), "exit_code": None, "found": backlog(3, 1)} | facts
    put_run(table.store, started, "ab12", document)


def committed_ago(table: TableWriter, seconds: float, *shard_ids: str) -> None:
    """Set the commit times of shards to `seconds` ago."""
    moment = time.time() - seconds
    for name in shard_ids:
        os.utime(Path(table.store.root) / "_shards" / f"{name}.json", (moment, moment))


def backlog(to_do: int, done: int, *, complete: bool = True) -> dict[str, object]:
    """Return the backlog in a run record, of shards of a hundred bytes."""
    counts = {"shards": to_do, "bytes": 100 * to_do, "done_shards": done, "done_bytes": 100 * done}
    return {**counts, "complete": complete}


def tars(folder: Path, names: str) -> list[Shard]:
    """Write shards of one image each with these names."""
    for name in names:
        write_tar(folder / f"{name}.tar", [("0.jpg", b"image")])
    return list(list_shards(str(folder)))


def commit(table: TableWriter, *shards: Shard) -> None:
    """Commit each shard with one part of one rejected sample."""
    for source in shards:
        part = table.write_part(source, 0, samples=1, latents=[], rejects=[reject_row("0")])
        table.commit_shard(source, [part])


def set_times(table: TableWriter, now: float, ages: dict[str, float]) -> None:
    """Set the ages of part files, in seconds at the time `now`."""
    for name, age in ages.items():
        moment = now - age
        os.utime(Path(table.store.root) / "latents" / f"{name}.parquet", (moment, moment))


def test_status_counts_open_and_committed_shards(root: str) -> None:
    table = writer(root)
    write_shard(table, shard("s-0"))
    write_shard(table, shard("s-1"), commit=False)
    record(table)
    status = table_status(root)
    assert (status.shards_committed, status.shards_open, status.shards_total) == (1, 1, 4)
    assert (status.bytes_committed, status.bytes_total) == (100, 400)
    assert (status.samples, status.faces, status.rejects, status.exact) == (12, 8, 8, True)
    assert (status.samples_open, status.faces_open, status.rejects_open) == (6, 4, 4)
    assert (status.parts, status.parts_open) == (4, 2)
    assert not status.complete
    assert [(run["run"], run["exit_code"]) for run in status.runs] == [
        ("20260102T000000Z-ab12", None)
    ]


def open_parts(table: TableWriter, *shard_ids: str) -> list[PartRecord]:
    """Write two parts of each shard without a commit; return their records."""
    written: list[PartRecord] = []
    for source in map(shard, shard_ids):
        write_shard(table, source, commit=False)
        written += map(table.with_etags, state_of(table, source).parts.values())
    return written


def test_open_parts_are_counted_by_index_or_footers(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = writer(root)
    indexed = open_parts(table, "s-0", "s-1")
    open_parts(table, "s-2")
    stale = replace(indexed[0], latents_etag="of another file", samples=1000)
    write_part_index(table.store, [stale, *indexed[1:]])
    read: list[str] = []

    def recording(store: Store, name: str) -> dict[str, Any]:
        read.append(name)
        return read_metadata(store, name)

    monkeypatch.setattr(part_index_module, "read_metadata", recording)
    status = table_status(root)
    assert (status.samples, status.faces, status.rejects, status.exact) == (18, 12, 12, True)
    names = [f"latents/{part}.parquet" for part in ("s-0-00000", "s-2-00000", "s-2-00001")]
    assert sorted(read) == names


def test_an_open_part_with_damaged_counts_counts_as_nothing(tmp_path: Path) -> None:
    table, path = writer(tmp_path), tmp_path / "latents" / "s-0-00000.parquet"
    open_parts(table, "s-0")
    rows = pq.read_table(path)
    facts = {**rows.schema.metadata, b"restyle.samples": b'"many"'}
    pq.write_table(rows.replace_schema_metadata(facts), path)
    assert table_status(str(tmp_path)).samples == 2


def test_counts_of_many_open_parts_are_estimated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part_index_module, "_READ_FOOTERS", 2)
    table = writer(tmp_path)
    for number in range(4):
        part = [face_row(str(n)) for n in range(3)]
        table.write_part(shard(f"s-{number}"), 0, samples=3, latents=part, rejects=[])
    status = table_status(str(tmp_path))
    assert (status.samples, status.faces, status.parts_open, status.exact) == (12, 12, 4, False)


def test_a_damaged_open_part_counts_nothing(tmp_path: Path) -> None:
    open_parts(writer(tmp_path), "s-0")
    (tmp_path / "latents" / "s-0-00000.parquet").write_bytes(b"PAR1")
    status = table_status(str(tmp_path))
    assert (status.samples, status.faces, status.parts_open) == (2, 0, 2)


def test_the_first_shard_of_a_table_has_a_rate(tmp_path: Path) -> None:
    table = writer(tmp_path)
    open_parts(table, "s-0")
    set_times(table, time.time(), {"s-0-00000": 40, "s-0-00001": 10})
    assert table_status(str(tmp_path)).samples_per_second == pytest.approx(3 / 30, rel=1e-3)


def test_rate_and_time_left_follow_the_last_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = datetime(2026, 1, 2, 3, tzinfo=UTC).timestamp()
    monkeypatch.setattr(status_module, "time", SimpleNamespace(time=lambda: now))
    table = writer(tmp_path)
    for name in ("s-0", "s-1"):
        write_shard(table, shard(name), commit=name == "s-0")
    record(table)
    set_times(table, now, {"s-0-00000": 9000, "s-0-00001": 50, "s-1-00000": 30, "s-1-00001": 10})
    status = table_status(str(tmp_path))
    assert status.parts_per_second == pytest.approx(2 / 40, rel=1e-3)
    assert status.samples_per_second == pytest.approx(3 * 2 / 40, rel=1e-3)
    # 100 of 400 bytes made two parts, so there are eight in all, of which four exist.
    assert status.seconds_left == pytest.approx(4 * 20, rel=1e-2)
    assert status.seconds_since_last_part == 10


def test_the_rate_excludes_pauses_between_runs(tmp_path: Path) -> None:
    """The rate is that of the earlier, killed run until the next one has written two parts."""
    table = writer(tmp_path)
    for name in ("s-0", "s-1"):
        write_shard(table, shard(name), commit=name == "s-0")
    now = datetime.now(UTC)
    put_run(
        table.store, now - timedelta(hours=1), "one", {"exit_code": None, "found": backlog(4, 0)}
    )
    put_run(
        table.store, now - timedelta(seconds=60), "two", {"exit_code": None, "found": backlog(4, 0)}
    )
    ages = {"s-0-00000": 540, "s-0-00001": 500, "s-1-00000": 30, "s-1-00001": 10}
    set_times(table, now.timestamp(), ages)
    assert table_status(str(tmp_path)).parts_per_second == pytest.approx(1 / 20, rel=1e-3)
    set_times(table, now.timestamp(), ages | {"s-1-00000": 520})
    assert table_status(str(tmp_path)).parts_per_second == pytest.approx(2 / 40, rel=1e-3)


@pytest.mark.parametrize(
    ("exit_code", "age", "updated", "at_work"),
    [
        (None, 10, 7000, True),
        (None, 7000, 10, True),  # it compares the input with the table, or loads its model
        (None, 7000, 7000, False),
        (None, 7000, None, False),
        (1, 10, 10, False),
        (0, 10, 10, False),
    ],
)
def test_time_left_is_given_only_during_a_run(
    tmp_path: Path, exit_code: int | None, age: float, updated: float | None, at_work: bool
) -> None:
    table = writer(tmp_path)
    write_shard(table, shard("s-0"))
    updated_at = updated and (datetime.now(UTC) - timedelta(seconds=updated)).isoformat()
    document = {"exit_code": exit_code, "updated": updated_at, "found": backlog(2, 0)}
    put_run(table.store, datetime.now(UTC) - timedelta(hours=3), "run", document)
    set_times(table, time.time(), {"s-0-00000": age + 20, "s-0-00001": age})
    status = table_status(str(tmp_path))
    assert (status.complete, status.at_work) == (False, at_work)
    assert (status.seconds_left is not None) == at_work


def test_a_run_with_slow_parts_stays_active(tmp_path: Path) -> None:
    table = writer(tmp_path)
    write_shard(table, shard("s-0"))
    put_run(table.store, datetime.now(UTC) - timedelta(hours=3), "run", {"exit_code": None})
    set_times(table, time.time(), {"s-0-00000": 1400, "s-0-00001": 900})
    assert table_status(str(tmp_path)).at_work
    set_times(table, time.time(), {"s-0-00000": 910})
    assert not table_status(str(tmp_path)).at_work


def test_the_input_is_listed_without_a_run_record(tmp_path: Path) -> None:
    for name in "abc":
        write_tar(tmp_path / "in" / f"{name}.tar", [("0.jpg", b"image")])
    table = writer(tmp_path / "table", config={"input": str(tmp_path / "in")})
    shards = list(list_shards(str(tmp_path / "in")))
    for source in shards[:2]:
        part = table.write_part(source, 0, samples=1, latents=[], rejects=[reject_row("0")])
        table.commit_shard(source, [part])
    status = table_status(str(tmp_path / "table"))
    assert (status.shards_committed, status.shards_total) == (2, 3)
    assert status.bytes_total == sum(source.size for source in shards)
    part = table.write_part(shards[2], 0, samples=1, latents=[], rejects=[reject_row("0")])
    table.commit_shard(shards[2], [part])
    assert table_status(str(tmp_path / "table")).complete


def test_a_removed_shard_does_not_complete_a_table(tmp_path: Path) -> None:
    for name in "ab":
        write_tar(tmp_path / "in" / f"{name}.tar", [("0.jpg", b"image")])
    table = writer(tmp_path / "table", config={"input": str(tmp_path / "in")})
    gone, still_there = list_shards(str(tmp_path / "in"))
    for source in (gone, still_there):
        part = table.write_part(source, 0, samples=1, latents=[], rejects=[reject_row("0")])
        if source is gone:
            table.commit_shard(source, [part])
    Path(gone.uri).unlink()
    status = table_status(str(tmp_path / "table"))
    assert (status.shards_committed, status.shards_total, status.shards_open) == (1, 1, 1)
    assert (status.complete, status.shards_left) == (False, 1)


def test_a_table_is_incomplete_after_a_failed_run(tmp_path: Path) -> None:
    write_tar(tmp_path / "in" / "a.tar", [("0.jpg", b"image")])
    table = writer(tmp_path / "table", config={"input": str(tmp_path / "in")})
    (only,) = list_shards(str(tmp_path / "in"))
    part = table.write_part(only, 0, samples=1, latents=[], rejects=[reject_row("0")])
    table.commit_shard(only, [part])
    for code, complete in ((1, False), (0, True)):
        put_run(table.store, datetime.now(UTC), f"run-{1 - code}", {"exit_code": code})
        assert table_status(str(tmp_path / "table")).complete is complete


def test_a_larger_unfinished_listing_hides_the_total(tmp_path: Path) -> None:
    table = writer(tmp_path, config={"input": str(tmp_path / "nowhere")})
    write_shard(table, shard("s-0"))
    began = datetime.now(UTC) - timedelta(hours=2)
    put_run(table.store, began, "one", {"exit_code": 0, "found": backlog(1, 0)})
    assert table_status(str(tmp_path)).complete
    document = {"exit_code": None, "found": backlog(4096, 1, complete=False)}
    put_run(table.store, began + timedelta(hours=1), "two", document)
    status = table_status(str(tmp_path))
    assert (status.complete, status.shards_total, status.seconds_left) == (False, None, None)


def test_a_table_is_incomplete_when_a_run_begins(tmp_path: Path) -> None:
    """Its backlog is unknown; the earlier total is the best estimate."""
    table = writer(tmp_path)
    write_shard(table, shard("s-0"))
    began = datetime.now(UTC) - timedelta(hours=2)
    put_run(table.store, began, "one", {"exit_code": 0, "found": backlog(1, 0)})
    document = {"exit_code": None, "found": backlog(0, 0, complete=False)}
    put_run(table.store, began + timedelta(hours=1), "two", document)
    status = table_status(str(tmp_path))
    assert (status.complete, status.shards_total, status.seconds_left) == (False, 1, None)


@pytest.mark.parametrize("list_input", [False, True])
def test_a_removed_shard_does_not_replace_an_open_one(tmp_path: Path, list_input: bool) -> None:
    shards = tars(tmp_path / "in", "abcd")
    table = writer(tmp_path / "table", config={"input": str(tmp_path / "in")})
    commit(table, *shards[:3])
    committed_ago(table, 3600, "a", "b", "c")
    Path(shards[0].uri).unlink()
    document = {"exit_code": None, "found": backlog(1, 2)}
    put_run(table.store, datetime.now(UTC) - timedelta(minutes=1), "run", document)
    status = table_status(str(tmp_path / "table"), list_input=list_input)
    assert (status.shards_committed, status.shards_total, status.shards_left) == (3, 3, 1)
    assert not status.complete
    commit(table, shards[3])
    status = table_status(str(tmp_path / "table"), list_input=list_input)
    assert (status.complete, status.shards_left, status.bytes_left) == (True, 0, 0)


def test_bytes_left_are_those_of_open_shards(tmp_path: Path) -> None:
    table = writer(tmp_path)
    for name in ("gone", "old", "new"):
        write_shard(table, shard(name))
    committed_ago(table, 3600, "gone", "old")
    document = {"exit_code": None, "found": backlog(3, 1)}
    put_run(table.store, datetime.now(UTC) - timedelta(minutes=1), "run", document)
    status = table_status(str(tmp_path))
    assert (status.shards_left, status.bytes_total, status.bytes_left) == (2, 400, 200)


def test_a_listing_finds_a_changed_shard(tmp_path: Path) -> None:
    shards = tars(tmp_path / "in", "ab")
    table = writer(tmp_path / "table", config={"input": str(tmp_path / "in")})
    commit(table, *shards)
    began = datetime.now(UTC)
    put_run(table.store, began, "run", {"exit_code": 0, "found": backlog(2, 0)})
    assert table_status(str(tmp_path / "table"), list_input=True).complete
    write_tar(tmp_path / "in" / "b.tar", [("0.jpg", b"another image")])
    status = table_status(str(tmp_path / "table"), list_input=True)
    assert (status.complete, status.shards_left, status.shards_total) == (False, 1, 2)


@pytest.mark.parametrize("list_input", [False, True])
def test_a_table_with_a_limit_uses_its_run_record(tmp_path: Path, list_input: bool) -> None:
    """The input has more shards, and a listing does not count the samples of a shard."""
    shards = tars(tmp_path / "in", "abc")
    layout = {"files_per_shard": 1000, "limit": 1}
    table = writer(tmp_path / "table", config={"input": str(tmp_path / "in")}, layout=layout)
    commit(table, shards[0])
    put_run(table.store, datetime.now(UTC), "run", {"exit_code": 0, "found": backlog(1, 0)})
    status = table_status(str(tmp_path / "table"), list_input=list_input)
    assert (status.complete, status.shards_total) == (True, 1)


def test_a_relative_input_is_resolved_as_for_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = tars(tmp_path / "in", "abc")
    layout = {"files_per_shard": 1000, "input": str(tmp_path / "in")}
    table = writer(tmp_path / "table", config={"input": "in"}, layout=layout)
    tars(tmp_path / "elsewhere" / "in", "a")
    monkeypatch.chdir(tmp_path / "elsewhere")
    commit(table, shards[0])
    status = table_status(str(tmp_path / "table"))
    assert (status.shards_total, status.complete) == (3, False)


def test_the_total_is_unknown_for_an_unreachable_input(tmp_path: Path) -> None:
    table = writer(tmp_path, config={"input": str(tmp_path / "nowhere")})
    write_shard(table, shard())
    status = table_status(str(tmp_path))
    assert (status.shards_total, status.seconds_left, status.complete) == (None, None, False)


def test_counts_of_unread_manifests_are_estimated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.table.status._READ_MANIFESTS", 2)
    table = writer(tmp_path)
    for number in range(4):
        write_shard(table, shard(f"s-{number}"))
    status = table_status(str(tmp_path))
    assert (status.shards_committed, status.samples, status.exact) == (4, 24, False)


def test_a_folder_without_a_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a table"):
        table_status(str(tmp_path))
