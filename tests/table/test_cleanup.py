"""The next run removes part files that readers see but no commit owns."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from pipeline.errors import StorageError
from pipeline.storage import Shard, Store
from pipeline.table import TableWriter, open_table, part_files
from pipeline.table import cleanup as cleanup_module
from pipeline.table import resume as resume_module
from pipeline.table.cleanup import Orphans
from tests.table.rows import COUNTS_OF_ONE, face_row, shard, state_of, write_shard, writer

SHARDS = [shard(f"s-{number}") for number in range(4)]


@pytest.fixture
def table(root: str) -> TableWriter:
    """Four committed shards of two parts."""
    table = writer(root)
    for source in SHARDS:
        write_shard(table, source)
    return table


def arrive_late(table: TableWriter, source: Shard, *parts: int) -> None:
    """Store parts of another part size, like puts that finish after their writer died."""
    other = writer(f"{table.store.root}-other", part_size=2)
    for part in parts:
        other.write_part(source, part, samples=1, latents=[face_row("f")], rejects=[])
        for kind in ("latents", "rejects"):
            name = f"{kind}/{source.shard_id}-{part:05d}.parquet"
            table.store.put(name, other.store.get(name))


def commit_three(table: TableWriter, source: Shard) -> None:
    parts = [
        table.write_part(source, part, samples=1, latents=[face_row(key)], rejects=[])
        for part, key in enumerate("def")
    ]
    table.commit_shard(source, parts)


def run(table: TableWriter, shards: list[Shard] = SHARDS, *, whole_input: bool = False) -> bool:
    orphans = Orphans(table.store)
    done = all(state.done for state in table.states(shards, orphans=orphans))
    for source in shards:
        orphans.add_input(source)
    orphans.remove(whole_input=whole_input)
    return done


def names_of(table: TableWriter, shard_id: str) -> list[str]:
    return [name for name in table.store.names() if f"/{shard_id}" in name]


@pytest.mark.parametrize("indexed", [False, True])
def test_the_next_run_removes_a_part_beyond_a_commit(
    table: TableWriter, monkeypatch: pytest.MonkeyPatch, indexed: bool
) -> None:
    monkeypatch.setattr(resume_module, "INDEXED_AT_ONCE", 3 if indexed else 1000)
    assert run(table)
    assert bool(table.store.names("_index/shards/")) == indexed
    before = [name for name in table.store.names() if not name.startswith("_index/")]
    arrive_late(table, SHARDS[1], 2, 5)
    table.store.remove("rejects/s-1-00005.parquet")
    assert open_table(table.store.root).sql("SELECT image_id FROM latents").shape[0] == 18
    assert run(table)
    assert [name for name in table.store.names() if not name.startswith("_index/")] == before
    assert open_table(table.store.root).verify()["faces"] == 4 * COUNTS_OF_ONE["faces"]


def test_late_parts_of_a_removed_shard_are_removed(table: TableWriter) -> None:
    arrive_late(table, SHARDS[3], 2)
    assert run(table, SHARDS[:3])
    assert open_table(table.store.root).verify()["shards"] == 4


def test_parts_of_an_uncommitted_shard_are_kept(table: TableWriter) -> None:
    table.store.remove("_shards/s-1.json")
    arrive_late(table, SHARDS[1], 7)
    before = table.store.names()
    assert not run(table)
    assert table.store.names() == before


def test_a_commit_after_the_listing_keeps_its_parts(
    table: TableWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The index row of a shard is outdated when another run has done it again."""
    monkeypatch.setattr(resume_module, "INDEXED_AT_ONCE", 3)
    run(table)
    committed = resume_module.CommittedShards(table.store)
    table.store.remove("_shards/s-1.json")
    again = writer(table.store.root, part_size=2)
    for part in (0, 1):
        for kind in ("latents", "rejects"):
            table.store.remove(f"{kind}/s-1-{part:05d}.parquet")
    commit_three(again, SHARDS[1])
    orphans = Orphans(table.store)
    orphans.start(committed)
    orphans.remove(whole_input=False)
    assert open_table(table.store.root).verify()["parts"] == 9


def test_a_shard_done_again_meanwhile_keeps_its_parts(table: TableWriter) -> None:
    """It is complete when the listed files are checked."""
    again = writer(table.store.root, part_size=2)
    orphans = Orphans(table.store)
    (state,) = again.states([shard("s-1", "etag-2")], orphans=orphans)
    again.clear(state)
    commit_three(again, state.shard)
    orphans.remove(whole_input=False)
    assert open_table(table.store.root).verify()["parts"] == 9


def test_a_stopped_run_stops_listing(table: TableWriter) -> None:
    arrive_late(table, SHARDS[1], 2)
    before = table.store.names()
    orphans = Orphans(table.store)
    orphans.stop()
    orphans.start(resume_module.CommittedShards(table.store))
    orphans.remove(whole_input=False)
    assert table.store.names() == before


def slices(count: int) -> list[Shard]:
    return [shard(f"files-{number:05d}", kind="folder") for number in range(count)]


@pytest.mark.parametrize("indexed", [False, True])
def test_slices_beyond_a_shorter_folder_are_removed(
    root: str, monkeypatch: pytest.MonkeyPatch, indexed: bool
) -> None:
    """Their files moved into earlier slices: readers would see those faces twice."""
    monkeypatch.setattr(resume_module, "INDEXED_AT_ONCE", 2 if indexed else 1000)
    table = writer(root)
    for source in (*slices(4), shard("a")):
        write_shard(table, source)
    assert run(table, [*slices(4), shard("a")], whole_input=True)
    assert run(table, [*slices(2), shard("a")])
    assert names_of(table, "files-00003"), "the whole input may not be known"
    assert run(table, [*slices(2), shard("a")], whole_input=True)
    assert open_table(root).verify()["shards"] == 3
    assert not names_of(table, "files-00002")


def test_open_parts_of_a_removed_shard_are_removed(
    table: TableWriter,
) -> None:
    write_shard(table, shard("left"), commit=False)
    write_shard(table, shard("open"), commit=False)
    assert not run(table, [*SHARDS, shard("left"), shard("open")], whole_input=True)
    assert names_of(table, "left")
    assert not run(table, [*SHARDS, shard("open")])
    assert names_of(table, "left"), "the whole input may not be known"
    assert not run(table, [*SHARDS, shard("open")], whole_input=True)
    assert not names_of(table, "left")
    assert len(names_of(table, "open")) == 4


def test_a_committed_shard_outside_the_input_is_kept(table: TableWriter) -> None:
    before = table.store.names()
    assert run(table, SHARDS[:2], whole_input=True)
    assert table.store.names() == before


def test_a_shard_committed_meanwhile_is_kept(table: TableWriter) -> None:
    """Another run, over a newer input, commits a shard that this run did not list."""
    write_shard(table, shard("new"), commit=False)
    orphans = Orphans(table.store)
    list(table.states(SHARDS, orphans=orphans))
    state = state_of(table, shard("new"))
    table.commit_shard(shard("new"), state.parts.values())
    orphans.remove(whole_input=True)
    assert open_table(table.store.root).verify()["shards"] == 5


def test_a_commit_during_the_removal_is_removed_too(
    table: TableWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A manifest without its parts would stay forever, and its faces be lost."""
    write_shard(table, shard("new"), commit=False)
    parts = state_of(table, shard("new")).parts.values()
    real = cleanup_module.remove_parts_from

    def slow(store: Store, files: Iterable[str], first: int) -> int:
        table.commit_shard(shard("new"), parts)
        return real(store, files, first)

    monkeypatch.setattr(cleanup_module, "remove_parts_from", slow)
    run(table, whole_input=True)
    assert not state_of(table, shard("new")).done, "so that it is done again"


def test_new_parts_of_another_run_are_kept(table: TableWriter) -> None:
    write_shard(table, shard("left"), commit=False)
    orphans = Orphans(table.store)
    infos = dict(table.store.infos("latents/"))
    orphans.began = max(info.modified for info in infos.values())
    list(table.states(SHARDS, orphans=orphans))
    time.sleep(1.1)  # a bucket's times are whole seconds
    write_shard(table, shard("new"), commit=False)
    for scan in orphans._scans:
        scan.join()
    orphans._scans = []
    orphans.start(orphans._committed)
    orphans.remove(whole_input=True)
    assert len(names_of(table, "new")) == 4
    assert not names_of(table, "left")


def test_a_disk_is_listed_once_for_all_removals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = writer(tmp_path)
    for number in range(20):
        write_shard(table, shard(f"left-{number}"), commit=False)
    orphans = Orphans(table.store)
    list(table.states([], orphans=orphans))
    for scan in orphans._scans:
        scan.join()
    listed: list[str] = []
    real = os.scandir

    def counted(path: str) -> Iterator[os.DirEntry[str]]:
        listed.append(path)
        return real(path)

    monkeypatch.setattr(os, "scandir", counted)
    assert orphans.remove(whole_input=True) == 80
    assert len(listed) == 2


def test_a_failed_listing_is_repeated_at_the_end(
    table: TableWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long run does not fail because of a storage error at its start."""
    arrive_late(table, SHARDS[1], 2)
    orphans = Orphans(table.store)
    with monkeypatch.context() as patch:
        patch.setattr(Store, "each_name", refuse)
        orphans.start(resume_module.CommittedShards(table.store))
        for scan in orphans._scans:
            scan.join()
    assert orphans.remove(whole_input=False) == 2
    assert open_table(table.store.root).verify()["parts"] == 8


def test_a_storage_that_stays_down_is_reported(
    table: TableWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    orphans = Orphans(table.store)
    monkeypatch.setattr(Store, "each_name", refuse)
    orphans.start(resume_module.CommittedShards(table.store))
    with pytest.raises(StorageError, match="503"):
        orphans.remove(whole_input=False)


def refuse(*_: object) -> Iterator[str]:
    raise StorageError("503")


def test_a_manifest_that_lost_a_part_is_removed(
    table: TableWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run does the shard again between the read of its manifest and the removal."""
    real = part_files.remove_parts_from

    def slow(store: Store, files: Iterable[str], first: int) -> int:
        monkeypatch.setattr(part_files, "remove_parts_from", real)
        again = writer(store.root, part_size=2)
        (state,) = again.states([shard("s-1", "etag-2")])
        again.clear(state)
        commit_three(again, state.shard)
        return real(store, files, first)

    arrive_late(table, SHARDS[1], 2)
    monkeypatch.setattr(part_files, "remove_parts_from", slow)
    run(table)
    (state,) = table.states([shard("s-1", "etag-2")])
    assert not state.done, "so that it is done again"
