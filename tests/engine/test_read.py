from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.engine import read
from pipeline.engine.read import ShardWork, cut_parts, read_parts
from pipeline.engine.rows import unpack
from pipeline.storage import ReadOptions, Shard, list_shards
from tests.engine.conftest import samples
from tests.storage.archives import only_shard, write_tar

NONE: frozenset[int] = frozenset()


def tar_shard(path: Path, count: int) -> Shard:
    write_tar(path, [(f"{number:03d}.jpg", b"image") for number in range(count)])
    return next(iter(list_shards(str(path))))


def kinds(work: ShardWork) -> list[tuple[str, int, int]]:
    return [(row["kind"], row["part"], row["samples"]) for row in read_parts(work.to_row())]


def test_parts_are_full_but_the_last() -> None:
    parts = [(part, count) for part, count, _ in cut_parts(iter(samples(7)), 3, NONE)]
    assert parts == [(0, 3), (1, 3), (2, 1)]


def test_a_full_last_part_is_followed_by_none() -> None:
    assert [part for part, _, _ in cut_parts(iter(samples(6)), 3, NONE)] == [0, 1]


def test_no_samples_make_no_part() -> None:
    assert list(cut_parts(iter([]), 3, NONE)) == []


def test_a_part_closes_before_it_outgrows_an_arrow_column(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "MAX_PART_BYTES", 25)
    parts = [count for _, count, _ in cut_parts(iter(samples(5, size=10)), 100, NONE)]
    assert parts == [2, 2, 1]


def test_a_sample_over_the_byte_limit_is_a_part_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(read, "MAX_PART_BYTES", 25)
    parts = [count for _, count, _ in cut_parts(iter(samples(2, size=30)), 100, NONE)]
    assert parts == [1, 1]


def test_existing_parts_are_counted_and_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "MAX_PART_BYTES", 25)
    cut = list(cut_parts(iter(samples(6, size=10)), 100, frozenset({1})))
    assert [(part, count, len(kept)) for part, count, kept in cut] == [
        (0, 2, 2),
        (1, 2, 0),
        (2, 2, 2),
    ]
    assert [sample.key for sample in cut[2][2]] == ["4", "5"]


def test_a_shard_ends_with_the_totals_of_all_parts(tmp_path: Path) -> None:
    work = ShardWork(tar_shard(tmp_path / "s.tar", 5), 2, frozenset({0}))
    assert kinds(work) == [("part", 1, 2), ("part", 2, 1), ("end", 3, 5)]


def test_only_so_many_samples_are_taken(tmp_path: Path) -> None:
    work = ShardWork(tar_shard(tmp_path / "s.tar", 5), 2, take=3)
    assert kinds(work) == [("part", 0, 2), ("part", 1, 1), ("end", 2, 3)]


def test_an_archive_without_images_is_an_end_alone(tmp_path: Path) -> None:
    write_tar(tmp_path / "s.tar", [("readme.txt", b"nothing here")])
    shard = next(iter(list_shards(str(tmp_path / "s.tar"))))
    assert kinds(ShardWork(shard, 2)) == [("end", 0, 0)]


def test_a_damaged_shard_gives_the_parts_before_the_damage_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    tar_shard(path, 5)
    path.write_bytes(path.read_bytes()[: 3 * 1024 + 700])  # into the fourth member
    rows = list(read_parts(ShardWork(next(iter(list_shards(str(path)))), 2).to_row()))
    assert [(row["kind"], row["part"]) for row in rows] == [("part", 0), ("failed", 1)]
    assert str(path) in rows[-1]["error"]
    assert rows[-1]["error"].startswith("read: StorageError: ")


def test_a_shard_that_vanished_fails_in_a_row(tmp_path: Path) -> None:
    shard = tar_shard(tmp_path / "s.tar", 1)
    (tmp_path / "s.tar").unlink()
    assert kinds(ShardWork(shard, 2)) == [("failed", 0, 0)]


def test_a_part_carries_its_samples_and_a_shard_without_its_file_names(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(name.encode())
    shard = next(iter(list_shards(str(tmp_path))))
    row = next(iter(read_parts(ShardWork(shard, 2).to_row())))
    payload = unpack(row["payload"])
    assert payload["key"].to_pylist() == ["a.jpg", "b.jpg"]
    assert payload["content"].to_pylist() == [b"a.jpg", b"b.jpg"]
    assert row["bytes"] == 10
    carried = json.loads(row["shard"])
    assert (carried["shard_id"], carried["etag"], carried["names"]) == (
        "files-00000",
        shard.etag,
        [],
    )


def test_work_survives_the_way_to_its_reader(tmp_path: Path) -> None:
    shard = tar_shard(tmp_path / "s.tar", 1)
    for work in (ShardWork(shard, 7, frozenset({2, 1}), 3), ShardWork(shard, 7)):
        assert ShardWork.from_row(work.to_row()) == work


def test_a_part_of_a_tar_takes_its_blocks_and_headers(tmp_path: Path) -> None:
    """The time left is told from bytes, and tiny members are mostly header."""
    shard = tar_shard(tmp_path / "s.tar", 5)
    taken = sum(row["bytes"] for row in read_parts(ShardWork(shard, 2).to_row()))
    assert taken == 5 * 1024
    assert taken <= shard.size, "the end of an archive is padding"


def test_fields_of_the_input_travel_in_the_part(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", [("0.jpg", b"1"), ("0.txt", b"a cat"), ("1.jpg", b"2")])
    options = ReadOptions(keep_columns={"txt": "string"})
    rows = list(read_parts(ShardWork(only_shard(path), 9, options=options).to_row()))
    fields = unpack(rows[0]["payload"])["fields"].to_pylist()
    assert list(map(json.loads, fields)) == [{"txt": "a cat"}, {"txt": None}]
    assert json.loads(rows[-1]["left_out"]) == {"(no txt)": 1}


def test_long_fields_close_a_part_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "MAX_PART_BYTES", 25)
    long = [replace(sample, fields="x" * 10) for sample in samples(3)]
    assert [count for _, count, _ in cut_parts(iter(long), 100, NONE)] == [2, 1]
