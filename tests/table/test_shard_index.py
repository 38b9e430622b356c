"""The index replaces the manifests at a restart, if its rows match them."""

from __future__ import annotations

import hashlib
import io
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.storage import Shard
from pipeline.table import Counts, TableWriter
from pipeline.table import resume as resume_module
from pipeline.table.shard_index import CommittedShards, indexed_records, table_stats, write_index
from pipeline.table.shard_records import ShardRecord, manifest_etags, manifest_name
from pipeline.table.shard_records import read_shard_record as read_one
from pipeline.table.spec import to_json
from tests.table.rows import commit, shard, state_of, write_shard, writer

SHARDS = [shard(f"s-{number}") for number in range(4)]


@pytest.fixture(autouse=True)
def small_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write an index file for every three shards."""
    monkeypatch.setattr(resume_module, "INDEXED_AT_ONCE", 3)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the shards whose manifests are read."""
    shards: list[str] = []

    def counting(store: object, shard_id: str) -> ShardRecord:
        shards.append(shard_id)
        return read_one(store, shard_id)  # type: ignore[arg-type]

    monkeypatch.setattr(resume_module, "read_shard_record", counting)
    return shards


def committed(table: TableWriter, shards: list[Shard] = SHARDS) -> list[tuple[int, int] | None]:
    done = [state.committed for state in table.states(shards)]
    return [counts and (counts.samples, counts.parts) for counts in done]


def indexed(table: TableWriter) -> set[str]:
    return {
        entry.shard for entry in indexed_records(table.store, dict(manifest_etags(table.store)))
    }


def test_manifests_are_read_only_once(root: str, read: list[str]) -> None:
    table = writer(root)
    for source in SHARDS:
        write_shard(table, source)
    assert committed(table) == [(6, 2)] * 4
    assert sorted(read) == ["s-0", "s-1", "s-2", "s-3"]
    read.clear()
    assert committed(table) == [(6, 2)] * 4
    assert read == []


def test_a_small_table_gets_no_index(root: str) -> None:
    table = writer(root)
    for source in SHARDS[:2]:
        write_shard(table, source)
    committed(table)
    assert table.store.names("_index/") == []


def test_a_dry_run_writes_no_index(root: str) -> None:
    table = writer(root)
    for source in SHARDS:
        write_shard(table, source)
    committed(TableWriter(root, table.spec, part_size=table.part_size, read_only=True))
    assert indexed(table) == set()


def test_rows_of_commits_match_the_manifests(root: str, read: list[str]) -> None:
    table = writer(root)
    entries = []
    for source in SHARDS:
        write_shard(table, source, commit=False)
        entries.append(commit(table, source))
    write_index(table.store, entries)
    assert committed(table) == [(6, 2)] * 4
    assert read == []
    assert [(entry.samples, entry.faces, entry.rejects) for entry in entries] == [(6, 4, 4)] * 4


def test_a_changed_indexed_shard_is_done_again(root: str) -> None:
    table = writer(root)
    for source in SHARDS:
        write_shard(table, source)
    committed(table)
    changed = replace(SHARDS[1], etag="etag-2")
    (state,) = table.states([changed])
    assert state.committed is None
    assert len(state.stale) == 5


def test_a_row_without_its_manifest_is_ignored(root: str) -> None:
    """The input changes and changes back, and the run in between writes no index."""
    table = writer(root)
    for source in SHARDS:
        write_shard(table, source)
    committed(table)
    changed = replace(SHARDS[1], etag="etag-2")
    for state in table.states([changed]):
        table.clear(state)
    assert indexed(table) == {"s-0", "s-2", "s-3"}
    write_shard(table, changed)
    (state,) = table.states([SHARDS[1]])
    assert state.committed is None, "the stored files are of the changed state"


def test_manifests_replace_a_damaged_index(root: str, read: list[str]) -> None:
    table = writer(root)
    for source in SHARDS:
        write_shard(table, source)
    committed(table)
    (name,) = table.store.names("_index/")
    table.store.put(name, b"PAR1 nothing PAR1")
    read.clear()
    assert committed(table) == [(6, 2)] * 4
    assert len(read) == 4


def test_an_index_without_manifests_commits_nothing(root: str) -> None:
    table = writer(root)
    for source in SHARDS:
        write_shard(table, source)
    committed(table)
    table.store.remove(manifest_name("s-2"))
    states = [state.done for state in table.states(SHARDS)]
    assert states == [True, True, False, True]


def test_index_files_are_named_by_their_content(root: str) -> None:
    table = writer(root)
    write_shard(table, SHARDS[0])
    entry = table.with_manifest_etag(read_one(table.store, "s-0"))
    assert write_index(table.store, [entry]) == write_index(table.store, [entry])


def test_an_index_of_earlier_versions_is_used(root: str, read: list[str]) -> None:
    """Without the columns that came since: or a start over a million shards reads all manifests."""
    table = writer(root)
    for source in SHARDS:
        write_shard(table, source)
    committed(table)
    (name,) = table.store.names("_index/")
    rows = pq.read_table(io.BytesIO(table.store.get(name))).drop_columns(["left_out"])
    sink = io.BytesIO()
    pq.write_table(rows, sink)
    table.store.remove(name)
    digest = hashlib.sha256(sink.getvalue()).hexdigest()[:16]
    table.store.put(f"_index/shards/s-0-{digest}.parquet", sink.getvalue())
    read.clear()
    assert committed(table) == [(6, 2)] * 4
    assert read == []


def test_the_index_holds_files_that_readers_passed_over(root: str) -> None:
    table = writer(root)
    entries = []
    for source in SHARDS:
        write_shard(table, source, commit=False)
        entries.append(commit(table, source, {".json": 2}))
    write_index(table.store, entries)
    assert table_stats(table.store).counts.left_out == {".json": 8}


def test_an_indexed_shard_is_found_in_its_committed_state(root: str) -> None:
    table = writer(root)
    for source in SHARDS[:2]:
        write_shard(table, source, commit=False)
    manifests = [
        table.commit_shard(source, state_of(table, source).parts.values()) for source in SHARDS[:2]
    ]
    write_index(table.store, [table.with_manifest_etag(manifests[0])])
    committed = CommittedShards(table.store)
    assert committed.are_committed(["s-2", "s-1", "s-0"]) == [False, True, True]
    assert [source.shard_id in committed for source in SHARDS[:3]] == [True, True, False]
    assert committed.find(SHARDS[:3]) == [Counts(shards=1, samples=6, parts=2), None, None]
    changed = [{"etag": "etag-2"}, {"size": 101}, {"uri": "s3://elsewhere/s-0.tar"}]
    assert committed.find([replace(SHARDS[0], **change) for change in changed]) == [None] * 3
    etags = [committed.unindexed_etag(source.shard_id) for source in SHARDS[:3]]
    assert etags == [None, table.store.info(manifest_name("s-1")).etag, None]


def test_a_row_of_another_manifest_is_ignored(root: str) -> None:
    table = writer(root)
    write_shard(table, SHARDS[0])
    write_index(table.store, [table.with_manifest_etag(table.commit_shard(SHARDS[1], []))])
    table.store.put(manifest_name("s-1"), b"{}")
    committed = CommittedShards(table.store)
    assert committed.find(SHARDS[1:2]) == [None]
    assert "s-1" in committed
    assert committed.unindexed_etag("s-1")


def test_the_row_that_matches_the_manifest_is_used(root: str) -> None:
    table = writer(root)
    old = table.with_manifest_etag(table.commit_shard(SHARDS[0], []))
    write_index(table.store, [old])
    table.store.remove(manifest_name("s-0"))
    changed = replace(SHARDS[0], etag="etag-2")
    write_shard(table, changed, commit=False)
    write_index(table.store, [commit(table, changed)])
    committed = CommittedShards(table.store)
    assert committed.find([changed, SHARDS[0]]) == [Counts(shards=1, samples=6, parts=2), None]


def test_a_table_without_shards_has_none_committed(tmp_path: Path) -> None:
    committed = CommittedShards(writer(tmp_path).store)
    assert committed.are_committed([]) == []
    assert "s-0" not in committed
    assert committed.find([shard()]) == [None]


def test_an_indexed_shard_costs_less_than_a_hundred_bytes(tmp_path: Path) -> None:
    table, shards = writer(tmp_path), [shard(f"s-{number:05d}") for number in range(6000)]
    (tmp_path / "_shards").mkdir()
    entries = []
    for source in shards:
        manifest = ShardRecord.of(source, [], table.spec.fingerprint, 4)
        (tmp_path / manifest_name(source.shard_id)).write_bytes(to_json(manifest.to_dict()))
        entries.append(table.with_manifest_etag(manifest))
    write_index(table.store, entries)
    CommittedShards(table.store)  # what the first call of its libraries leaves behind
    tracemalloc.start()
    committed = CommittedShards(table.store)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert all(committed.find(shards))
    assert held / len(shards) < 100
