"""Promises of reading slices of folders."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from aiobotocore.response import StreamingBody
from aiohttp import ClientPayloadError

from pipeline.errors import StorageError
from pipeline.storage import Store, list_shards, read_samples, spread_samples
from tests.conftest import Bucket
from tests.storage.archives import only_shard, samples_of, write_files


def test_equal_names_in_two_folders_stay_apart(tmp_path: Path) -> None:
    write_files(tmp_path, "a/1.jpg", "b/1.jpg", "1.jpg", "1.png")
    contents = {sample.key: sample.content.decode() for sample in samples_of(tmp_path)}
    assert contents == {name: name for name in ("a/1.jpg", "b/1.jpg", "1.jpg", "1.png")}
    assert samples_of(tmp_path)[2].uri == f"{tmp_path}/a/1.jpg"


def test_reading_by_keys_touches_no_other_file(tmp_path: Path) -> None:
    write_files(tmp_path, "1.jpg", "2.jpg", "a/1.jpg")
    shard = only_shard(tmp_path)
    (tmp_path / "2.jpg").unlink()
    chosen = {"a/1.jpg", "1.jpg", "unknown"}
    assert [sample.key for sample in read_samples(shard, chosen)] == ["1.jpg", "a/1.jpg"]


def test_names_that_read_alike_get_unique_keys(tmp_path: Path) -> None:
    """Byte 0xFF is written as four characters, which another file has in its name."""
    for name in (b"\xff.jpg", rb"\xff.jpg", b"0.jpg", b"z.jpg"):
        (tmp_path / os.fsdecode(name)).write_bytes(name)
    shard = only_shard(tmp_path)
    contents = {sample.key: sample.content for sample in read_samples(shard)}
    assert contents == {
        "0.jpg": b"0.jpg",
        r"\xff.jpg": rb"\xff.jpg",
        r"\xff.jpg~2": b"\xff.jpg",
        "z.jpg": b"z.jpg",
    }
    assert list(contents) == list(shard.keys)
    for key in contents:
        (alone,) = read_samples(shard, {key})
        assert (alone.key, alone.content) == (key, contents[key]), "whatever else is read"
    assert [sample.key for sample in spread_samples(str(tmp_path), 9)] == list(contents)
    first, second = list_shards(str(tmp_path), files_per_shard=3)
    assert [first.keys, second.keys] == [
        ("0.jpg", r"\xff.jpg", "z.jpg"),
        (r"\xff.jpg",),
    ], "unique in a slice, and of it alone"


def test_empty_file_is_a_sample(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").touch()
    (sample,) = samples_of(tmp_path)
    assert (sample.key, sample.content, sample.reject) == ("1.jpg", b"", "")


def test_too_large_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.storage.readers.folder.MAX_SAMPLE_BYTES", 5)
    write_files(tmp_path, "1.jpg", "12.jpg")
    large, fits = sorted(samples_of(tmp_path), key=lambda sample: len(sample.content))
    assert (large.key, large.content, large.reject) == ("12.jpg", b"", "too_large")
    assert (fits.key, fits.content, fits.reject) == ("1.jpg", b"1.jpg", "")


def test_deleted_file_fails_its_shard(tmp_path: Path) -> None:
    write_files(tmp_path, "1.jpg", "2.jpg")
    shard = only_shard(tmp_path)
    (tmp_path / "2.jpg").unlink()
    with pytest.raises(StorageError, match=r"cannot read '.*/2\.jpg': not found"):
        list(read_samples(shard))


def test_deleted_object_fails_its_shard(s3: Bucket) -> None:
    store = Store(f"{s3.uri}/in")
    for name in ("1.jpg", "2.jpg"):
        store.put(name, b"1")
    shard = only_shard(store.root)
    store.remove("2.jpg")
    with pytest.raises(StorageError, match="not found"):
        list(read_samples(shard))


def test_names_are_not_treated_as_patterns(store: Store) -> None:
    names = ("a*.jpg", "a1.jpg", "photo[1].jpg", "photo1.jpg", "what?.jpg", "whats.jpg", "{x}.jpg")
    for name in names:
        store.put(f"[0]/{name}", name.encode())
    contents = {sample.key: sample.content.decode() for sample in samples_of(store.root)}
    assert contents == {f"[0]/{name}": name for name in names}


def test_error_names_the_object_that_failed(s3: Bucket) -> None:
    store = Store(f"{s3.uri}/in")
    for name in ("photo[1].jpg", "photo[2].jpg"):
        store.put(name, b"1")
    shard = only_shard(store.root)
    store.remove("photo[2].jpg")
    with pytest.raises(StorageError, match=r"cannot read 's3://.*/in/photo\[2\].jpg': not found$"):
        list(read_samples(shard))


def test_truncated_answer_of_a_bucket_is_requested_again(
    s3: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(f"{s3.uri}/in")
    for name in ("1.jpg", "2.jpg"):
        store.put(name, name.encode())
    shard = only_shard(store.root)
    whole = StreamingBody.read
    cuts = ["1.jpg", "2.jpg"]

    async def read(self: StreamingBody, amt: int | None = None) -> bytes:
        content = bytes(await whole(self, amt))
        if content.decode() in cuts:
            cuts.remove(content.decode())
            raise ClientPayloadError("Response payload is not completed")
        return content

    monkeypatch.setattr(StreamingBody, "read", read)
    assert [sample.content for sample in read_samples(shard)] == [b"1.jpg", b"2.jpg"]
    assert cuts == []
    monkeypatch.setattr(store.fs, "retries", 2)
    cuts += ["2.jpg", "2.jpg"]
    with pytest.raises(StorageError, match=r"2\.jpg': Response payload is not completed"):
        list(read_samples(shard))


def test_other_storages_read_literal_names_too() -> None:
    store = Store("memory://by-name")
    for name in ("a[1].jpg", "a1.jpg"):
        store.put(name, name.encode())
    assert [sample.content for sample in samples_of(store.root)] == [b"a1.jpg", b"a[1].jpg"]


def test_slice_is_read_in_small_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory holds only the current group of files: a later one can still be deleted."""
    monkeypatch.setattr("pipeline.storage.readers.folder._BYTES_AHEAD", 20)
    write_files(tmp_path, *(f"{i}.jpg" for i in range(9)))
    samples = read_samples(only_shard(tmp_path))
    assert next(samples).key == "0.jpg"
    (tmp_path / "8.jpg").unlink()
    with pytest.raises(StorageError):
        list(samples)
