"""Several runs over one shard: crossing commits and removals leave a correct table."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from pipeline.errors import StorageError, TableError
from pipeline.storage import Store
from pipeline.table import PartRecord, ShardRecord, TableWriter, open_table
from pipeline.table import writer as writer_module
from pipeline.table.part_index import PartIndex
from pipeline.table.resume import States
from tests.table.rows import (
    face_row,
    reject_row,
    shard,
    state_of,
    write_shard,
    writer,
)


def rival_part_size(root: object) -> TableWriter:
    """Return a writer of the same shard with another part size and as many parts."""
    rival = writer(root, part_size=5)
    rival.clear(state_of(rival, shard()))
    return rival


def test_a_commit_over_parts_of_a_rival_is_refused(root: str) -> None:
    table = writer(root)
    rows = {"samples": 1, "latents": [face_row("a")], "rejects": []}
    summary = table.write_part(shard(), 0, **rows)
    rival = rival_part_size(root)
    theirs = rival.write_part(shard(), 0, samples=1, latents=[face_row("b")], rejects=[])
    with pytest.raises(TableError, match="another run has written part 0"):
        table.commit_shard(shard(), [summary])
    rival.commit_shard(shard(), [theirs])
    assert open_table(root).verify()["faces"] == 1


@pytest.mark.parametrize("part_size", [5, 4])
def test_a_part_with_rejects_of_a_rival_is_done_again(root: str, part_size: int) -> None:
    """A rival that lists between a part's two files clears the rejects and writes its own."""
    table, rival = writer(root), writer(root, part_size=part_size)
    rows = {"samples": 2, "latents": [face_row("a")]}
    summary = table.write_part(shard(), 0, **rows, rejects=[reject_row("b")])
    table.store.remove("rejects/s-0-00000.parquet")
    theirs = [reject_row("b", "crashed")]
    if part_size == table.part_size:
        rival.write_part(shard(), 0, **rows, rejects=theirs)
    else:
        with pytest.raises(TableError, match="another part size"):
            rival.write_part(shard(), 0, **rows, rejects=theirs)
        state = state_of(table, shard())
        assert not state.parts
        assert len(state.stale) == 2
    with pytest.raises(TableError, match="another run has written part 0"):
        table.commit_shard(shard(), [summary])
    state = state_of(table, shard())
    table.clear(state.without([0]) if state.parts else state)
    table.commit_shard(shard(), [table.write_part(shard(), 0, **rows, rejects=[reject_row("b")])])
    assert open_table(root).verify()["rejects"] == 1


def test_the_commit_whose_files_are_stored_wins(root: str) -> None:
    """The first run pauses between its check of the files and its manifest."""
    table = writer(root)
    summary = table.write_part(shard(), 0, samples=1, latents=[face_row("a")], rejects=[])
    rival = rival_part_size(root)
    theirs = rival.write_part(shard(), 0, samples=1, latents=[face_row("b")], rejects=[])
    assert ShardRecord.of(shard(), [summary], "fingerprint", 4).write(table.store)
    rival.commit_shard(shard(), [theirs])
    assert open_table(root).verify()["faces"] == 1


def test_a_commit_without_its_files_is_withdrawn(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = writer(root)
    summary = table.write_part(shard(), 0, samples=1, latents=[face_row("a")], rejects=[])
    write = ShardRecord.write

    def with_a_rival(manifest: ShardRecord, store: Store) -> bool:
        rival_part_size(root)
        return write(manifest, store)

    monkeypatch.setattr(ShardRecord, "write", with_a_rival)
    with pytest.raises(TableError, match="is missing"):
        table.commit_shard(shard(), [summary])
    assert not table.store.exists("_shards/s-0.json")


def test_a_shard_committed_meanwhile_is_not_cleared(root: str) -> None:
    table = writer(root)
    write_shard(table, shard(), commit=False)
    rival = writer(root, part_size=5)
    state = state_of(rival, shard())
    table.commit_shard(shard(), state_of(table, shard()).parts.values())
    rival.clear(state)
    assert open_table(root).verify()["faces"] == 4


def test_a_commit_that_cannot_be_checked_is_withdrawn(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its parts may be missing; the next run checks them."""
    table = writer(root)
    write_shard(table, shard(), commit=False)
    parts = state_of(table, shard()).parts.values()

    def down(*_: object) -> None:
        raise StorageError("503")

    with monkeypatch.context() as patch:
        patch.setattr(writer_module, "read_part_record", down)
        with pytest.raises(StorageError, match="503"):
            table.commit_shard(shard(), parts)
    assert not state_of(table, shard()).done
    table.commit_shard(shard(), parts)
    assert state_of(table, shard()).done


def test_a_changed_shard_done_again_meanwhile_is_not_cleared(root: str) -> None:
    table = writer(root)
    write_shard(table, shard())
    state = state_of(table, shard(etag="etag-2"))
    table.clear(state)
    write_shard(table, shard(etag="etag-2"))
    before = table.store.names()
    table.clear(state)
    assert table.store.names() == before


def test_a_commit_while_parts_are_cleared_is_removed(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = writer(root)
    write_shard(table, shard())
    state = state_of(table, shard(etag="etag-2"))
    remove = Store.remove
    removals = []

    def slow(store: Store, name: str) -> None:
        if name.startswith("latents/") and not removals:
            removals.append(name)
            table.store.put("_shards/s-0.json", b"of another run")
        remove(store, name)

    monkeypatch.setattr(Store, "remove", slow)
    table.clear(state)
    assert [name for name in table.store.names() if "s-0" in name] == []


def test_a_late_part_of_another_part_size_is_withdrawn(root: str) -> None:
    table, late = writer(root), writer(root, part_size=2)
    write_shard(table, shard())
    before = table.store.names()
    with pytest.raises(TableError, match="another run has committed shard 's-0'"):
        late.write_part(shard(), 2, samples=1, latents=[face_row("f")], rejects=[])
    assert table.store.names() == before
    assert open_table(root).verify()["samples"] == 6


def test_a_late_part_beyond_a_commit_is_withdrawn(root: str) -> None:
    """A smaller `--limit` gives the later run fewer samples of the shard."""
    late, table = writer(root, part_size=2), writer(root, part_size=2)
    part = table.write_part(shard(), 0, samples=1, latents=[face_row("a")], rejects=[])
    table.commit_shard(shard(), [part])
    with pytest.raises(TableError, match="another run has committed shard 's-0'"):
        late.write_part(shard(), 1, samples=1, latents=[face_row("c")], rejects=[])
    assert open_table(root).verify()["samples"] == 1


@pytest.mark.parametrize(("dead_size", "size"), [(4, 2), (2, 4), (3, 2)])
@pytest.mark.parametrize("written", [0, 1])
def test_a_late_manifest_without_its_parts_is_removed(
    root: str, dead_size: int, size: int, written: int
) -> None:
    """It names files that are deleted, and would mark the shard as done forever."""
    dead, table = writer(root, part_size=dead_size), writer(root, part_size=size)
    parts = write_six(dead)
    table.clear(state_of(table, shard()))
    done = write_six(table, range(written))
    ShardRecord.of(shard(), parts, dead.spec.fingerprint, dead_size).write(table.store)
    done += write_six(table, range(written, -(-6 // size)))
    table.commit_shard(shard(), done)
    assert open_table(root).verify()["faces"] == 6


def write_six(table: TableWriter, parts: Iterable[int] | None = None) -> list[PartRecord]:
    """Write these parts, or all, of a shard of six faces."""
    size = table.part_size
    done = []
    for part in range(-(-6 // size)) if parts is None else parts:
        rows = [face_row(key) for key in "abcdef"[part * size : (part + 1) * size]]
        done.append(table.write_part(shard(), part, samples=len(rows), latents=rows, rejects=[]))
    return done


def test_a_shard_cleared_while_states_are_read_is_open(root: str) -> None:
    table = writer(root)
    for name in ("s-0", "s-1"):
        write_shard(table, shard(name))
    shards = [shard("s-0"), shard("s-1", "etag-2")]
    listed = States(table.store, table.part_key, PartIndex(table.store))
    table.clear(state_of(table, shards[1]))
    states = list(listed.of(shards))
    assert [state.done for state in states] == [True, False]
    assert states[1].stale == ()


def test_a_commit_written_while_another_is_checked_is_kept(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead, table = writer(root, part_size=4), writer(root, part_size=2)
    parts = write_six(dead)
    table.clear(state_of(table, shard()))
    ShardRecord.of(shard(), parts, dead.spec.fingerprint, 4).write(table.store)
    real = TableWriter._is_whole

    def slow(late: TableWriter, record: ShardRecord) -> bool:
        monkeypatch.setattr(TableWriter, "_is_whole", real)
        is_whole = real(late, record)
        late.store.remove("_shards/s-0.json")
        late.commit_shard(shard(), write_six(late))
        return is_whole

    monkeypatch.setattr(TableWriter, "_is_whole", slow)
    write_six(table, [0])
    assert state_of(table, shard()).done
    assert open_table(root).verify()["faces"] == 6
