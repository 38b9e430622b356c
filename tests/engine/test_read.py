from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.engine.messages import Failure, Message, SampleBatch, ShardEnd, ShardTask
from pipeline.engine.stages import read
from pipeline.engine.stages.base import results
from pipeline.engine.stages.read import Read, cut_parts
from pipeline.storage import ReadOptions, Shard, list_shards
from tests.engine.conftest import samples
from tests.storage.archives import only_shard, write_tar

NONE: frozenset[int] = frozenset()


def tar_shard(path: Path, count: int) -> Shard:
    write_tar(path, [(f"{number:03d}.jpg", b"image") for number in range(count)])
    return next(iter(list_shards(str(path))))


def read_all(task: ShardTask) -> list[Message]:
    return list(results(Read(), task))


def batches(task: ShardTask) -> list[SampleBatch]:
    return [one for one in read_all(task) if isinstance(one, SampleBatch)]


def kinds(task: ShardTask) -> list[tuple[str, int, int]]:
    """Kind, part and number of samples of each message."""
    return [
        ("part", one.part, one.counts.samples)
        if isinstance(one, SampleBatch)
        else (
            "end" if isinstance(one, ShardEnd) else "failed",
            one.part,
            getattr(one, "samples", 0),
        )
        for one in read_all(task)
    ]


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
    work = ShardTask(tar_shard(tmp_path / "s.tar", 5), 2, frozenset({0}))
    assert kinds(work) == [("part", 1, 2), ("part", 2, 1), ("end", 3, 5)]


def test_only_so_many_samples_are_taken(tmp_path: Path) -> None:
    work = ShardTask(tar_shard(tmp_path / "s.tar", 5), 2, take=3)
    assert kinds(work) == [("part", 0, 2), ("part", 1, 1), ("end", 2, 3)]


def test_an_archive_without_images_is_an_end_alone(tmp_path: Path) -> None:
    write_tar(tmp_path / "s.tar", [("readme.txt", b"nothing here")])
    shard = next(iter(list_shards(str(tmp_path / "s.tar"))))
    assert kinds(ShardTask(shard, 2)) == [("end", 0, 0)]


def test_a_damaged_shard_gives_the_parts_before_the_damage_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    tar_shard(path, 5)
    path.write_bytes(path.read_bytes()[: 3 * 1024 + 700])  # into the fourth member
    part, failure = read_all(ShardTask(next(iter(list_shards(str(path)))), 2))
    assert isinstance(failure, Failure)
    assert (part.part, failure.part, failure.stage) == (0, 1, "read")
    assert str(path) in failure.error
    assert failure.error.startswith("StorageError: ")


def test_a_shard_that_vanished_fails_in_a_row(tmp_path: Path) -> None:
    shard = tar_shard(tmp_path / "s.tar", 1)
    (tmp_path / "s.tar").unlink()
    assert kinds(ShardTask(shard, 2)) == [("failed", 0, 0)]


def test_a_part_carries_its_samples_and_a_shard_without_its_file_names(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(name.encode())
    shard = next(iter(list_shards(str(tmp_path))))
    (batch,) = batches(ShardTask(shard, 2))
    assert batch.samples["key"].to_pylist() == ["a.jpg", "b.jpg"]
    assert batch.samples["content"].to_pylist() == [b"a.jpg", b"b.jpg"]
    assert batch.counts.bytes == 10
    carried = batch.shard
    assert (carried.shard_id, carried.etag, carried.names) == ("files-00000", shard.etag, ())


def test_a_part_of_a_tar_takes_its_blocks_and_headers(tmp_path: Path) -> None:
    """The time left is told from bytes, and tiny members are mostly header."""
    shard = tar_shard(tmp_path / "s.tar", 5)
    taken = sum(batch.counts.bytes for batch in batches(ShardTask(shard, 2)))
    assert taken == 5 * 1024
    assert taken <= shard.size, "the end of an archive is padding"


def test_fields_of_the_input_travel_in_the_part(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", [("0.jpg", b"1"), ("0.txt", b"a cat"), ("1.jpg", b"2")])
    options = ReadOptions(keep_columns={"txt": "string"})
    batch, end = read_all(ShardTask(only_shard(path), 9, options=options))
    assert isinstance(batch, SampleBatch)
    assert isinstance(end, ShardEnd)
    fields = batch.samples["fields"].to_pylist()
    assert list(map(json.loads, fields)) == [{"txt": "a cat"}, {"txt": None}]
    assert end.left_out == {"(no txt)": 1}


def test_long_fields_close_a_part_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "MAX_PART_BYTES", 25)
    long = [replace(sample, fields="x" * 10) for sample in samples(3)]
    assert [count for _, count, _ in cut_parts(iter(long), 100, NONE)] == [2, 1]
