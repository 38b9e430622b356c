"""Which shards are committed, in little memory."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path

from pipeline.table.committed import Committed, CommittedShards
from pipeline.table.documents import to_json
from pipeline.table.index import write_entries
from pipeline.table.manifests import ShardManifest, manifest_name
from tests.table.rows import shard, write_shard, writer

SHARDS = [shard(f"s-{number}") for number in range(3)]


def test_what_the_index_knows_of_a_shard_is_found_as_it_was_committed(root: str) -> None:
    table = writer(root)
    for one in SHARDS[:2]:
        write_shard(table, one, commit=False)
    manifests = [table.commit_shard(one, table.state(one).parts.values()) for one in SHARDS[:2]]
    table.index([table.entry(manifests[0])])
    committed = CommittedShards(table.store)
    assert committed.among(["s-2", "s-1", "s-0"]) == [False, True, True]
    assert [one.shard_id in committed for one in SHARDS] == [True, True, False]
    assert committed.find(SHARDS) == [Committed(6, 2), None, None]
    changed = [{"etag": "etag-2"}, {"size": 101}, {"uri": "s3://elsewhere/s-0.tar"}]
    assert committed.find([replace(SHARDS[0], **one) for one in changed]) == [None] * 3
    etags = [committed.unindexed_etag(one.shard_id) for one in SHARDS]
    assert etags == [None, table.store.info(manifest_name("s-1")).etag, None]


def test_an_entry_of_another_manifest_is_not_believed(root: str) -> None:
    table = writer(root)
    write_shard(table, SHARDS[0])
    table.index([table.entry(table.commit_shard(SHARDS[1], []))])
    table.store.put(manifest_name("s-1"), b"{}")
    committed = CommittedShards(table.store)
    assert committed.find(SHARDS[1:2]) == [None]
    assert "s-1" in committed
    assert committed.unindexed_etag("s-1")


def test_of_two_entries_of_a_shard_the_one_of_its_manifest_is_believed(root: str) -> None:
    table = writer(root)
    old = table.entry(table.commit_shard(SHARDS[0], []))
    table.index([old])
    table.store.remove(manifest_name("s-0"))
    changed = replace(SHARDS[0], etag="etag-2")
    write_shard(table, changed, commit=False)
    table.index([table.entry(table.commit_shard(changed, table.state(changed).parts.values()))])
    committed = CommittedShards(table.store)
    assert committed.find([changed, SHARDS[0]]) == [Committed(6, 2), None]


def test_a_table_without_a_shard_has_none(tmp_path: Path) -> None:
    committed = CommittedShards(writer(tmp_path).store)
    assert committed.among([]) == []
    assert "s-0" not in committed
    assert committed.find([shard()]) == [None]


def test_an_indexed_shard_costs_less_than_a_hundred_bytes(tmp_path: Path) -> None:
    table, shards = writer(tmp_path), [shard(f"s-{number:05d}") for number in range(6000)]
    (tmp_path / "_shards").mkdir()
    entries = []
    for one in shards:
        manifest = ShardManifest.of(one, [], table.description.fingerprint, 4)
        (tmp_path / manifest_name(one.shard_id)).write_bytes(to_json(manifest.to_dict()))
        entries.append(table.entry(manifest))
    write_entries(table.store, entries)
    CommittedShards(table.store)  # what the first call of its libraries leaves behind
    tracemalloc.start()
    committed = CommittedShards(table.store)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert all(committed.find(shards))
    assert held / len(shards) < 100
