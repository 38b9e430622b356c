"""Promises of counting the samples of a shard, and of drawing a few from a large input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import StorageError
from pipeline.storage import Sample, Store, count_samples, read_samples, sampling, spread_samples
from pipeline.storage.readers import folder
from pipeline.storage.sampling import evenly
from tests.conftest import Bucket
from tests.storage.archives import (
    PACKINGS,
    only_shard,
    samples_of,
    write_files,
    write_packed_tar,
    write_parquet,
    write_tar,
)

MEMBERS = [
    *((f"{number}.jpg", b"image" * 1000) for number in range(5)),
    ("0.json", b"{}"),
    (".hidden.jpg", b"image"),
    ("a/" + "long" * 60 + ".png", b"image"),
]


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test if a sample is read."""

    def refuse(*_: Any) -> Any:
        raise AssertionError("a sample was read")

    monkeypatch.setattr(sampling, "read_samples", refuse)


@pytest.mark.usefixtures("unread")
def test_tar_on_a_disk_is_counted_by_headers(tmp_path: Path) -> None:
    shard = only_shard(write_tar(tmp_path / "a.tar", MEMBERS))
    assert [count_samples(shard, at_most) for at_most in (None, 99, 6, 2)] == [6, 6, 6, 2]


@pytest.mark.usefixtures("unread")
def test_parquet_is_counted_by_its_footer(tmp_path: Path) -> None:
    shard = only_shard(write_parquet(tmp_path / "a.parquet", {"image": [b"x", None, b"y"]}))
    assert [count_samples(shard, at_most) for at_most in (None, 2)] == [3, 2]


@pytest.mark.usefixtures("unread")
def test_slice_is_counted_by_its_listing(tmp_path: Path) -> None:
    shard = only_shard(write_files(tmp_path, "a.jpg", "b.jpg"))
    (tmp_path / "a.jpg").unlink()
    assert [count_samples(shard, at_most) for at_most in (None, 1)] == [2, 1]


@pytest.mark.parametrize("packing", PACKINGS)
def test_packed_tar_is_counted_by_reading(tmp_path: Path, packing: str) -> None:
    assert count_samples(only_shard(write_packed_tar(tmp_path / "a.tar", MEMBERS, packing))) == 6


@pytest.mark.parametrize(
    ("name", "length"),
    [
        *(("a.tar", length) for length in (0, 700, 3 * 5632 + 700, 5 * 5632)),
        *(("a.tgz", length) for length in (2, 100, 200)),
    ],
)
def test_damaged_tar_counts_the_samples_before_damage(
    tmp_path: Path, name: str, length: int
) -> None:
    path = write_tar(tmp_path / name, MEMBERS, "w:gz" if name == "a.tgz" else "w")
    path.write_bytes(path.read_bytes()[:length])
    shard, read = only_shard(path), list[Sample]()
    with pytest.raises(StorageError):
        read.extend(read_samples(shard))
    assert count_samples(shard) - len(read) in (0, 1), "a sample that is cut off may count"


def test_unreadable_header_ends_the_count(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", MEMBERS)
    content = bytearray(path.read_bytes())
    content[2 * 5632 : 2 * 5632 + 512] = b"\xff" * 512
    path.write_bytes(content)
    assert count_samples(only_shard(path)) == 2


def test_invalid_or_deleted_parquet_has_no_samples(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", {"image": [b"x"]})
    shard = only_shard(path)
    path.write_bytes(b"x" * 100)
    assert count_samples(shard) == 0
    path.unlink()
    assert count_samples(shard) == 0


def test_storage_failure_is_raised_while_counting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tar(tmp_path / "a.tar", MEMBERS)
    shard = only_shard(path)
    path.write_bytes(b"")

    def down(_: str) -> Any:
        raise StorageError("down")

    monkeypatch.setattr(sampling, "file_entry", down)
    with pytest.raises(StorageError, match="down"):
        count_samples(shard)


def test_bucket_shards_are_counted_alike(s3: Bucket, tmp_path: Path) -> None:
    for path in (
        write_tar(tmp_path / "a.tar", MEMBERS),
        write_parquet(tmp_path / "b.parquet", {"image": [b"x", b"y"]}),
    ):
        Store(s3.uri).put(path.name, path.read_bytes())
        uri = f"{s3.uri}/{path.name}"
        assert count_samples(only_shard(uri)) == len(samples_of(uri))


def keys(folder: Path, limit: int) -> list[str]:
    return [sample.key for sample in spread_samples(str(folder), limit)]


def test_indices_are_even_and_include_both_ends() -> None:
    assert evenly(10, 4) == [0, 3, 6, 9]
    assert evenly(3, 100) == [0, 1, 2]
    assert (evenly(7, 1), evenly(0, 5)) == ([0], [])
    for count in range(1, 60):
        places = evenly(count, 34)
        assert (places[0], places[-1]) == (0, count - 1)
        assert len(set(places)) == len(places) == min(count, 34)


def test_samples_are_spread_over_all_shards(tmp_path: Path) -> None:
    for name, count in (("a", 3), ("b", 5)):
        write_tar(tmp_path / f"{name}.tar", [(f"{name}{n}.jpg", b"image") for n in range(count)])
    write_parquet(tmp_path / "c.parquet", {"key": ["c0", "c1"], "image": [b"x", b"y"]})
    write_files(tmp_path, "d/0.jpg", "d/1.jpg")
    assert keys(tmp_path, 4) == ["a0", "b0", "b4", "d/1.jpg"]
    assert len(keys(tmp_path, 12)) == len(keys(tmp_path, 99)) == 12


def test_only_the_chosen_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path, *(f"{number}.jpg" for number in range(9)))
    fetched: list[str] = []
    contents = folder._contents
    monkeypatch.setattr(
        folder, "_contents", lambda shard, names: fetched.extend(names) or contents(shard, names)
    )
    assert keys(tmp_path, 3) == fetched == ["0.jpg", "4.jpg", "8.jpg"]


def test_only_the_chosen_archives_are_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(7):
        write_tar(tmp_path / f"{number}.tar", [(f"{number}-{n}.jpg", b"image") for n in range(3)])
    opened: list[str] = []
    read = sampling.read_samples
    monkeypatch.setattr(
        sampling,
        "read_samples",
        lambda shard, *others: opened.append(shard.shard_id) or read(shard, *others),
    )
    assert keys(tmp_path, 3) == ["0-0", "3-0", "6-0"]
    assert opened == ["0", "3", "6"]


def test_masks_are_not_spread(tmp_path: Path) -> None:
    members = [(f"{n}.{end}", b"1") for n in range(4) for end in ("jpg", "seg.png")]
    write_tar(tmp_path / "s.tar", members)
    assert keys(tmp_path, 9) == ["0", "1", "2", "3"]
