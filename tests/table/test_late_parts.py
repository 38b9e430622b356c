"""A part that lands beside a committed shard, its writer dead, is gone after the next run."""

from __future__ import annotations

import pytest

from pipeline.storage import Shard
from pipeline.table import LateParts, TableWriter, open_table
from pipeline.table import states as states_module
from tests.table.rows import COUNTS_OF_ONE, face_row, shard, write_shard, writer

SHARDS = [shard(f"s-{number}") for number in range(4)]


@pytest.fixture
def table(root: str) -> TableWriter:
    """Four committed shards of two parts, beside which a part of s-1 and half of one came late."""
    table = writer(root)
    for one in SHARDS:
        write_shard(table, one)
    return table


def arrive_late(table: TableWriter, one: Shard, *parts: int) -> None:
    """The files of parts of another part size, as a put that outlived its writer leaves them."""
    other = writer(f"{table.store.root}-other", part_size=2)
    for part in parts:
        other.write_part(one, part, samples=1, latents=[face_row("f")], rejects=[])
        for kind in ("latents", "rejects"):
            name = f"{kind}/{one.shard_id}-{part:05d}.parquet"
            table.store.put(name, other.store.get(name))


def commit_three(table: TableWriter, one: Shard) -> None:
    parts = [
        table.write_part(one, part, samples=1, latents=[face_row(key)], rejects=[])
        for part, key in enumerate("def")
    ]
    table.commit_shard(one, parts)


def run(table: TableWriter, shards: list[Shard] = SHARDS) -> bool:
    late_parts = LateParts(table.store)
    done = all(state.done for state in table.states(shards, late_parts=late_parts))
    late_parts.remove()
    return done


@pytest.mark.parametrize("indexed", [False, True])
def test_a_part_beside_a_commit_is_removed_by_the_next_run(
    table: TableWriter, monkeypatch: pytest.MonkeyPatch, indexed: bool
) -> None:
    monkeypatch.setattr(states_module, "INDEXED_AT_ONCE", 3 if indexed else 1000)
    assert run(table)
    assert bool(table.store.names("_index/shards/")) == indexed
    before = [name for name in table.store.names() if not name.startswith("_index/")]
    arrive_late(table, SHARDS[1], 2, 5)
    table.store.remove("rejects/s-1-00005.parquet")
    assert open_table(table.store.root).sql("SELECT image_id FROM latents").shape[0] == 18
    assert run(table)
    assert [name for name in table.store.names() if not name.startswith("_index/")] == before
    assert open_table(table.store.root).verify()["faces"] == 4 * COUNTS_OF_ONE["faces"]


def test_a_shard_that_is_gone_from_the_input_is_cleared_too(table: TableWriter) -> None:
    arrive_late(table, SHARDS[3], 2)
    assert run(table, SHARDS[:3])
    assert open_table(table.store.root).verify()["shards"] == 4


def test_parts_of_a_shard_that_is_not_committed_are_left_alone(table: TableWriter) -> None:
    table.store.remove("_shards/s-1.json")
    arrive_late(table, SHARDS[1], 7)
    before = table.store.names()
    assert not run(table)
    assert table.store.names() == before


def test_a_commit_that_came_after_the_listing_keeps_its_parts(
    table: TableWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the index says of a shard is old when another run has done it again since."""
    monkeypatch.setattr(states_module, "INDEXED_AT_ONCE", 3)
    run(table)
    known = states_module.CommittedShards(table.store)
    table.store.remove("_shards/s-1.json")
    again = writer(table.store.root, part_size=2)
    for part in (0, 1):
        for kind in ("latents", "rejects"):
            table.store.remove(f"{kind}/s-1-{part:05d}.parquet")
    commit_three(again, SHARDS[1])
    late_parts = LateParts(table.store)
    late_parts.look_beside(known)
    late_parts.remove()
    assert open_table(table.store.root).verify()["parts"] == 9


def test_a_shard_that_is_done_again_meanwhile_keeps_its_parts(table: TableWriter) -> None:
    """It is whole when what the listing found is looked at."""
    again = writer(table.store.root, part_size=2)
    late_parts = LateParts(table.store)
    (state,) = again.states([shard("s-1", "etag-2")], late_parts=late_parts)
    again.clear(state)
    commit_three(again, state.shard)
    late_parts.remove()
    assert open_table(table.store.root).verify()["parts"] == 9


def test_a_run_that_is_stopped_looks_no_further(table: TableWriter) -> None:
    arrive_late(table, SHARDS[1], 2)
    before = table.store.names()
    late_parts = LateParts(table.store)
    late_parts.stop()
    late_parts.look_beside(states_module.CommittedShards(table.store))
    late_parts.remove()
    assert table.store.names() == before
