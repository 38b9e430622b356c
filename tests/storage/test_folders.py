"""Promises of reading slices of folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import StorageError
from pipeline.storage import Store, read_samples
from tests.conftest import Bucket
from tests.storage.archives import only_shard, samples_of, write_files


def test_files_of_one_name_in_two_folders_stay_apart(tmp_path: Path) -> None:
    write_files(tmp_path, "a/1.jpg", "b/1.jpg", "1.jpg", "1.png")
    found = {one.key: one.content.decode() for one in samples_of(tmp_path)}
    assert found == {name: name for name in ("a/1.jpg", "b/1.jpg", "1.jpg", "1.png")}
    assert samples_of(tmp_path)[2].uri == f"{tmp_path}/a/1.jpg"


def test_of_chosen_keys_no_other_file_is_touched(tmp_path: Path) -> None:
    write_files(tmp_path, "1.jpg", "2.jpg", "a/1.jpg")
    shard = only_shard(tmp_path)
    (tmp_path / "2.jpg").unlink()
    chosen = {"a/1.jpg", "1.jpg", "unknown"}
    assert [one.key for one in read_samples(shard, chosen)] == ["1.jpg", "a/1.jpg"]


def test_an_empty_file_is_a_sample(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").touch()
    (found,) = samples_of(tmp_path)
    assert (found.key, found.content, found.reject) == ("1.jpg", b"", "")


def test_a_file_that_is_too_large_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.storage.folders.MAX_SAMPLE_BYTES", 5)
    write_files(tmp_path, "1.jpg", "12.jpg")
    large, fits = sorted(samples_of(tmp_path), key=lambda one: len(one.content))
    assert (large.key, large.content, large.reject) == ("12.jpg", b"", "too_large")
    assert (fits.key, fits.content, fits.reject) == ("1.jpg", b"1.jpg", "")


def test_a_file_that_vanished_fails_its_shard(tmp_path: Path) -> None:
    write_files(tmp_path, "1.jpg", "2.jpg")
    shard = only_shard(tmp_path)
    (tmp_path / "2.jpg").unlink()
    with pytest.raises(StorageError, match=r"cannot read '.*/2\.jpg': not found"):
        list(read_samples(shard))


def test_an_object_that_vanished_fails_its_shard(s3: Bucket) -> None:
    store = Store(f"{s3.uri}/in")
    for name in ("1.jpg", "2.jpg"):
        store.put(name, b"1")
    shard = only_shard(store.root)
    store.remove("2.jpg")
    with pytest.raises(StorageError, match="not found"):
        list(read_samples(shard))


def test_one_slice_is_read_a_few_files_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a slice that does not fit into memory only the present group is held."""
    monkeypatch.setattr("pipeline.storage.folders._BYTES_AHEAD", 20)
    write_files(tmp_path, *(f"{i}.jpg" for i in range(9)))
    samples = read_samples(only_shard(tmp_path))
    assert next(samples).key == "0.jpg"
    (tmp_path / "8.jpg").unlink()
    with pytest.raises(StorageError):
        list(samples)
