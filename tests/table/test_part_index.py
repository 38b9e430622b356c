"""The part index replaces the footers at a restart, if its rows match the stored files."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import TableError
from pipeline.storage import Shard, Store
from pipeline.table import PartRecord, TableWriter, open_table, part_index
from pipeline.table import resume as resume_module
from pipeline.table import writer as writer_module
from pipeline.table.part_index import PartIndex
from pipeline.table.parts import PartKey, read_part_record
from pipeline.table.shard_index import write_index
from pipeline.table.stats import Stats
from tests.table.rows import face_row, shard, state_of, writer

FOLDER = "_index/parts/"


@pytest.fixture(autouse=True)
def small_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write an index file for every two parts."""
    monkeypatch.setattr(part_index, "PARTS_INDEXED_AT_ONCE", 2)


@pytest.fixture
def footers(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Record the shards and parts whose footers are read."""
    read: list[tuple[str, int]] = []

    def counting(store: Store, key: PartKey) -> PartRecord | None:
        read.append((key.shard, key.part))
        return read_part_record(store, key)

    monkeypatch.setattr(resume_module, "read_part_record", counting)
    return read


def write(
    table: TableWriter, index: PartIndex, parts: int, source: Shard | None = None
) -> list[PartRecord]:
    """Write and index parts of a shard, one face each, like a run."""
    source = source or shard()
    summaries = []
    for part in range(parts):
        rows = [face_row(f"{part}")]
        summary = table.write_part(source, part, samples=1, latents=rows, rejects=[])
        index.add(table.with_etags(summary))
        summaries.append(summary)
    return summaries


def test_a_resume_reads_no_footer_of_an_indexed_part(
    root: str, footers: list[tuple[str, int]]
) -> None:
    table = writer(root)
    summaries = write(table, PartIndex(table.store), 2)
    (state,) = table.states([shard()])
    assert footers == []
    assert state.parts == dict(enumerate(summaries)), "with their SHA-256"
    assert state.stale == ()


def test_footers_of_unindexed_parts_are_read(root: str, footers: list[tuple[str, int]]) -> None:
    table = writer(root)
    write(table, PartIndex(table.store), 3)
    (state,) = table.states([shard()])
    assert footers == [("s-0", 2)]
    assert [state.parts[part].samples for part in range(3)] == [1, 1, 1]


def test_a_resumed_shard_is_committed_without_hashing_its_files(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = writer(root)
    write(table, PartIndex(table.store), 2)
    monkeypatch.delattr(writer_module, "_BLOCK")
    (state,) = table.states([shard()])
    table.commit_shard(shard(), state.parts.values())
    assert open_table(root).verify()["faces"] == 2


@pytest.mark.parametrize("kind", ["latents", "rejects"])
def test_a_row_of_another_object_is_ignored(
    root: str, footers: list[tuple[str, int]], kind: str
) -> None:
    table = writer(root)
    write(table, PartIndex(table.store), 2)
    table.store.put(f"{kind}/s-0-00001.parquet", b"PAR1 nothing PAR1")
    (state,) = table.states([shard()])
    assert footers == [("s-0", 1)]
    assert sorted(state.parts) == [0]


@pytest.mark.parametrize("change", ["etag", "part_size", "settings"])
def test_a_row_with_another_key_is_ignored(tmp_path: Path, change: str) -> None:
    table, source = writer(tmp_path), shard()
    write(table, PartIndex(table.store), 2)
    if change == "etag":
        source = replace(source, etag="etag-2")
    elif change == "part_size":
        table = writer(tmp_path, part_size=5)
    else:
        other = replace(table.spec, settings={"weights": "other"})
        table = TableWriter(str(tmp_path), other, part_size=4)
    state = state_of(table, source)
    assert (state.parts, len(state.stale)) == ({}, 4)


def test_an_indexed_part_with_one_file_is_done_again(root: str) -> None:
    table = writer(root)
    write(table, PartIndex(table.store), 2)
    table.store.remove("rejects/s-0-00000.parquet")
    (state,) = table.states([shard()])
    assert (sorted(state.parts), state.stale) == ([1], ("latents/s-0-00000.parquet",))


def test_files_of_committed_shards_leave_the_part_index(root: str) -> None:
    table = writer(root)
    index = PartIndex(table.store)
    first, second = shard("s-0"), shard("s-1")
    table.commit_shard(first, [*write(table, index, 1, first)])
    table.commit_shard(second, [*write(table, index, 1, second)])
    (name,) = table.store.names(FOLDER)
    index.close("s-0")
    assert table.store.names(FOLDER) == [name], "it has rows of the other shard"
    index.close("s-1")
    assert table.store.names(FOLDER) == []


def test_parts_of_a_shard_committed_soon_are_not_indexed(tmp_path: Path) -> None:
    table = writer(tmp_path)
    index = PartIndex(table.store)
    for name in ("s-0", "s-1", "s-2"):
        write(table, index, 1, shard(name))
        index.close(name)
    assert table.store.names(FOLDER) == []


def test_a_restart_removes_index_files_of_committed_shards(root: str) -> None:
    table = writer(root)
    table.commit_shard(shard(), write(table, PartIndex(table.store), 2))
    write(table, PartIndex(table.store), 2, shard("s-1"))
    index = PartIndex(table.store)
    assert [state.done for state in table.states([shard(), shard("s-1")], index)] == [True, False]
    (name,) = table.store.names(FOLDER)
    assert name.startswith(f"{FOLDER}s-1-")
    index.close("s-1")
    assert table.store.names(FOLDER) == [], "a run also removes files of earlier runs"


def test_a_dry_run_leaves_the_part_index_as_it_is(tmp_path: Path) -> None:
    table = writer(tmp_path)
    table.commit_shard(shard(), write(table, PartIndex(table.store), 2))
    before = table.store.names(FOLDER)
    dry = TableWriter(str(tmp_path), table.spec, part_size=4, read_only=True)
    assert [state.done for state in dry.states([shard()])] == [True]
    assert table.store.names(FOLDER) == before != []


def test_a_wrong_row_removes_its_index_files(
    root: str,
) -> None:
    """Another run replaced the parts before their etags were read."""
    table, index = writer(root), PartIndex(writer(root).store)
    rival = writer(root, part_size=5)
    write(rival, PartIndex(rival.store, read_only=True), 2)
    for part in range(2):
        key, figures = table.part_key(shard(), part).digest, Stats().figures_text()
        record = PartRecord("s-0", part, key, 1, 1, 0, "ab" * 32, "cd" * 32, figures=figures)
        index.add(table.with_etags(record))
    index = PartIndex(table.store)
    (state,) = table.states([shard()], index)
    with pytest.raises(TableError, match="another run has written part 0"):
        table.commit_shard(shard(), state.parts.values())
    index.forget("s-0")
    assert table.store.names(FOLDER) == []
    (state,) = table.states([shard()])
    assert (state.parts, len(state.stale)) == ({}, 4)


def test_damaged_and_foreign_index_files_are_ignored(
    tmp_path: Path, footers: list[tuple[str, int]]
) -> None:
    table = writer(tmp_path)
    write(table, PartIndex(table.store), 2)
    (name,) = table.store.names(FOLDER)
    content = table.store.get(name)
    sink = io.BytesIO()
    pq.write_table(pa.table({"shard": ["s-0"]}), sink)
    table.store.put(f"{FOLDER}notes.txt", b"not ours")
    table.store.put(f"{FOLDER}other-0123456789abcdef.parquet", sink.getvalue())
    table.store.put(name, content[:-40] + bytes(40))
    left = table.store.names(FOLDER)
    (state,) = table.states([shard()])
    assert (sorted(state.parts), sorted(footers)) == ([0, 1], [("s-0", 0), ("s-0", 1)])
    assert table.store.names(FOLDER) == left


def test_an_index_file_with_other_columns_is_ignored(tmp_path: Path) -> None:
    table = writer(tmp_path)
    write(table, PartIndex(table.store, read_only=True), 2)
    other = write_index(table.store, [table.commit_shard(shard("s-1"), [])])
    table.store.put(f"{FOLDER}{other.rsplit('/', 1)[1]}", table.store.get(other))
    (state,) = table.states([shard()])
    assert sorted(state.parts) == [0, 1]


def test_a_run_continues_if_its_part_index_vanishes(tmp_path: Path) -> None:
    table = writer(tmp_path)
    write(table, PartIndex(table.store), 2)
    index = PartIndex(table.store)
    (state,) = table.states([shard()], index)
    for name in table.store.names("_index/"):
        table.store.remove(name)
    table.commit_shard(shard(), state.parts.values())
    index.close("s-0")
    assert open_table(str(tmp_path)).verify()["parts"] == 2


def test_an_index_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    table = writer(tmp_path)
    (tmp_path / "_index").write_bytes(b"a file where a folder should be")
    index = PartIndex(table.store)
    table.commit_shard(shard(), write(table, index, 2))
    index.close("s-0")
    assert [state.done for state in table.states([shard()])] == [True]


def test_a_part_written_twice_has_the_stored_etags(
    root: str, footers: list[tuple[str, int]]
) -> None:
    table = writer(root)
    write(table, PartIndex(table.store), 2)
    for part in range(2):
        for kind in ("latents", "rejects"):
            table.store.remove(f"{kind}/s-0-{part:05d}.parquet")
    rows = [face_row("a"), face_row("b")]
    again = table.write_part(shard(), 0, samples=2, latents=rows, rejects=[])
    index = PartIndex(table.store)
    again = table.with_etags(again)
    for record in (again, replace(again, shard="s-1")):
        index.add(record)
    (state,) = table.states([shard()])
    assert footers == []
    assert state.parts == {0: again}


def test_etags_of_a_part_equal_those_of_a_listing(root: str) -> None:
    table = writer(root)
    (part,) = write(table, PartIndex(table.store), 1)
    listed = {name: info.etag for name, info in table.store.infos()}
    names = ("latents/s-0-00000.parquet", "rejects/s-0-00000.parquet")
    record = table.with_etags(part)
    assert (record.latents_etag, record.rejects_etag) == tuple(listed[name] for name in names)
    table.store.remove(names[0])
    assert table.with_etags(part).latents_etag == ""
