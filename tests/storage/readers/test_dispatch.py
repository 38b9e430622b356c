"""Promises of reading shards: a shard is read in one state, or it fails."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import StorageError
from pipeline.storage import Store, read_samples
from tests.conftest import Bucket
from tests.storage.archives import (
    let_the_disk_s_clock_move_on,
    only_shard,
    write_files,
    write_parquet,
    write_tar,
)

MEMBERS = [(f"{number}.jpg", b"image") for number in range(3)]


def test_archive_replaced_while_read_fails_at_its_end(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", MEMBERS)
    samples = read_samples(only_shard(path))
    next(samples)
    let_the_disk_s_clock_move_on(path)  # both are as long, by a tar's padding
    write_tar(tmp_path / "new.tar", [*MEMBERS, *MEMBERS]).replace(path)
    with pytest.raises(StorageError, match=r"a\.tar' changed while it was read; run again"):
        list(samples)


def test_rewritten_parquet_file_fails(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", {"image": [b"image"]})
    shard = only_shard(path)
    write_parquet(path, {"image": [b"other", b"images"]})
    with pytest.raises(StorageError, match="changed while it was read"):
        list(read_samples(shard))


def longer(path: Path) -> None:
    path.write_bytes(b"longer than before")


def of_equal_length(path: Path) -> None:
    path.write_bytes(path.read_bytes()[::-1])
    os.utime(path, ns=(1, 1))


@pytest.mark.parametrize("change", [longer, of_equal_length, Path.unlink])
def test_folder_with_a_changed_file_fails(tmp_path: Path, change: Callable[[Path], None]) -> None:
    shard = only_shard(write_files(tmp_path, "a.jpg", "b.jpg"))
    change(tmp_path / "b.jpg")
    with pytest.raises(StorageError, match=r"changed while it was read|b\.jpg': not found"):
        list(read_samples(shard))


@pytest.mark.parametrize("limit", [1 << 30, 3])
def test_object_replaced_at_equal_size_fails_its_shard(
    s3: Bucket, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    """Compare etags also of objects that are too large to be read, as all are with `limit` 3."""
    monkeypatch.setattr("pipeline.storage.readers.folder.MAX_SAMPLE_BYTES", limit)
    store = Store(f"{s3.uri}/in")
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        store.put(name, b"before" if name == "b.jpg" else b"1")
    shard = only_shard(store.root)
    assert len(list(read_samples(shard))) == 3
    store.put("b.jpg", b"behind")
    samples = read_samples(shard)
    assert [next(samples).key for _ in range(3)] == ["a.jpg", "b.jpg", "c.jpg"]
    with pytest.raises(StorageError, match=r"/in' changed while it was read; run again"):
        next(samples)
    assert [sample.key for sample in read_samples(shard, {"a.jpg"})] == ["a.jpg"]
    assert len(list(read_samples(only_shard(store.root)))) == 3


def test_file_added_to_a_folder_is_ignored(tmp_path: Path) -> None:
    shard = only_shard(write_files(tmp_path, "a.jpg"))
    write_files(tmp_path, "b.jpg")
    assert [sample.key for sample in read_samples(shard)] == ["a.jpg"]
