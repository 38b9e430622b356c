"""The index spares a restart the manifests, and is believed only while they are what it says."""

from __future__ import annotations

import hashlib
import io
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from pipeline.storage import Shard
from pipeline.table import TableWriter, Totals, index
from pipeline.table import states as states_module
from pipeline.table.index import read_entries
from pipeline.table.manifests import ShardManifest, manifest_etags, manifest_name
from pipeline.table.manifests import read_manifest as read_one
from tests.table.rows import shard, write_shard, writer

SHARDS = [shard(f"s-{number}") for number in range(4)]


@pytest.fixture(autouse=True)
def small_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three shards are many."""
    monkeypatch.setattr(states_module, "INDEXED_AT_ONCE", 3)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The shards whose manifests were read."""
    shards: list[str] = []

    def counting(store: object, shard_id: str) -> ShardManifest:
        shards.append(shard_id)
        return read_one(store, shard_id)  # type: ignore[arg-type]

    monkeypatch.setattr(states_module, "read_manifest", counting)
    return shards


def committed(table: TableWriter, shards: list[Shard] = SHARDS) -> list[tuple[int, int] | None]:
    return [state.committed for state in table.states(shards)]


def indexed(table: TableWriter) -> set[str]:
    return {entry.shard for entry in read_entries(table.store, dict(manifest_etags(table.store)))}


def test_manifests_that_were_read_once_are_not_read_again(root: str, read: list[str]) -> None:
    table = writer(root)
    for one in SHARDS:
        write_shard(table, one)
    assert committed(table) == [(6, 2)] * 4
    assert sorted(read) == ["s-0", "s-1", "s-2", "s-3"]
    read.clear()
    assert committed(table) == [(6, 2)] * 4
    assert read == []


def test_few_shards_make_no_index(root: str) -> None:
    table = writer(root)
    for one in SHARDS[:2]:
        write_shard(table, one)
    committed(table)
    assert table.store.names("_index/") == []


def test_a_dry_run_writes_no_index(root: str) -> None:
    table = writer(root)
    for one in SHARDS:
        write_shard(table, one)
    committed(TableWriter(root, table.description, part_size=table.part_size, read_only=True))
    assert indexed(table) == set()


def test_entries_of_commits_are_true_of_the_manifests(root: str, read: list[str]) -> None:
    table = writer(root)
    entries = []
    for one in SHARDS:
        write_shard(table, one, commit=False)
        entries.append(table.entry(table.commit_shard(one, table.state(one).parts.values())))
    table.index(entries)
    assert committed(table) == [(6, 2)] * 4
    assert read == []
    assert [(entry.samples, entry.faces, entry.rejects) for entry in entries] == [(6, 4, 4)] * 4


def test_an_input_that_changed_is_redone_though_the_index_knows_its_old_state(root: str) -> None:
    table = writer(root)
    for one in SHARDS:
        write_shard(table, one)
    committed(table)
    changed = replace(SHARDS[1], etag="etag-2")
    (state,) = table.states([changed])
    assert state.committed is None
    assert len(state.stale) == 5


def test_what_the_index_says_of_a_manifest_that_is_gone_is_forgotten(root: str) -> None:
    """The input changes and changes back, and the run between them leaves no index."""
    table = writer(root)
    for one in SHARDS:
        write_shard(table, one)
    committed(table)
    changed = replace(SHARDS[1], etag="etag-2")
    for state in table.states([changed]):
        table.clear(state)
    assert indexed(table) == {"s-0", "s-2", "s-3"}
    write_shard(table, changed)
    (state,) = table.states([SHARDS[1]])
    assert state.committed is None, "what lies there is of the state between"


def test_a_damaged_index_costs_the_reading_of_manifests_alone(root: str, read: list[str]) -> None:
    table = writer(root)
    for one in SHARDS:
        write_shard(table, one)
    committed(table)
    (name,) = table.store.names("_index/")
    table.store.put(name, b"PAR1 nothing PAR1")
    read.clear()
    assert committed(table) == [(6, 2)] * 4
    assert len(read) == 4


def test_an_index_without_the_table_is_worth_nothing(root: str) -> None:
    table = writer(root)
    for one in SHARDS:
        write_shard(table, one)
    committed(table)
    table.store.remove(manifest_name("s-2"))
    states = [state.done for state in table.states(SHARDS)]
    assert states == [True, True, False, True]


def test_the_name_of_an_index_file_is_that_of_its_content(root: str) -> None:
    table = writer(root)
    write_shard(table, SHARDS[0])
    entry = table.entry(read_one(table.store, "s-0"))
    assert index.write_entries(table.store, [entry]) == index.write_entries(table.store, [entry])


def test_an_index_of_earlier_versions_is_believed(root: str, read: list[str]) -> None:
    """Without the columns that came since: or a start over a million shards reads all manifests."""
    table = writer(root)
    for one in SHARDS:
        write_shard(table, one)
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


def test_the_index_knows_what_readers_passed_over(root: str) -> None:
    table = writer(root)
    entries = []
    for one in SHARDS:
        write_shard(table, one, commit=False)
        parts = table.state(one).parts.values()
        entries.append(table.entry(table.commit_shard(one, parts, {".json": 2})))
    table.index(entries)
    assert Totals.of(table.store).left_out == {".json": 8}
