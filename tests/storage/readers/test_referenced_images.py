"""Promises of opening the images that a Parquet file names by their paths."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.errors import StorageError
from pipeline.storage import Sample, Store, read_samples
from tests.conftest import Bucket
from tests.storage.archives import only_shard, write_files, write_parquet

HF = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def sample_of(folder: Path, path: str) -> Sample:
    """Return the sample of a row without bytes that has this path."""
    images = pa.array([{"bytes": None, "path": path}], HF)
    write_parquet(folder / "p.parquet", {"image": images})
    (sample,) = read_samples(only_shard(folder / "p.parquet"))
    return sample


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return a folder with two images; a folder beside it holds a secret image."""
    write_files(tmp_path, "elsewhere/secret.jpg")
    return write_files(tmp_path / "data", "a.jpg", "more/b c.jpg")


@pytest.mark.parametrize("path", ["a.jpg", "./a.jpg", "more/b c.jpg", "more//b c.jpg"])
def test_relative_path_in_the_folder_is_opened(data: Path, path: str) -> None:
    sample = sample_of(data, path)
    assert sample.content.decode() == path.replace("./", "").replace("//", "/")
    assert (sample.key, sample.reject) == (path, "")
    assert sample.uri == f"{data}/{sample.content.decode()}"


@pytest.mark.parametrize("before", ["", "file://"])
def test_whole_path_into_the_folder_is_opened(data: Path, before: str) -> None:
    assert sample_of(data, f"{before}{data}/a.jpg").content == b"a.jpg"


@pytest.mark.parametrize(
    "path",
    [
        *("../elsewhere/secret.jpg", "more/../../elsewhere/secret.jpg", "more/../a.jpg"),
        *("/etc/passwd", "file:///etc/passwd", "{elsewhere}/secret.jpg", "{data}/../elsewhere/x"),
        *("{data}-other/x.jpg", "link.jpg", "linked/secret.jpg", "s3://bucket/a.jpg"),
        *("https://example.org/a.jpg", "a.jpg\0", "simplecache::file:///etc/passwd"),
        *("zip://a.jpg::file://{data}/a.zip", "~/secret.jpg", "..", "/"),
    ],
)
def test_path_out_of_the_folder_is_not_opened(data: Path, path: str) -> None:
    elsewhere = data.parent / "elsewhere"
    (data / "link.jpg").symlink_to(elsewhere / "secret.jpg")
    (data / "linked").symlink_to(elsewhere)
    sample = sample_of(data, path.format(data=data, elsewhere=elsewhere))
    assert (sample.content, sample.reject) == (b"", "no_bytes")


def test_link_inside_the_folder_is_followed(data: Path) -> None:
    (data / "link.jpg").symlink_to(data / "a.jpg")
    assert sample_of(data, "link.jpg").content == b"a.jpg"


@pytest.mark.parametrize("path", ["missing.jpg", "more", "a.jpg/b", "x" * 300, "pipe"])
def test_missing_file_is_a_reject_with_its_path(data: Path, path: str) -> None:
    os.mkfifo(data / "pipe")
    sample = sample_of(data, path)
    assert sample.reject == "no_bytes"
    assert f"no file to read at '{path}'" in sample.detail


def test_too_large_file_is_not_read(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.storage.readers.referenced_images.MAX_SAMPLE_BYTES", 4)
    assert sample_of(data, "a.jpg").reject == "too_large"


def test_references_in_a_bucket_follow_the_same_rules(s3: Bucket, tmp_path: Path) -> None:
    store = Store(s3.uri)
    store.put("in/a.jpg", b"image")
    store.put("secret.jpg", b"secret")
    paths = ["a.jpg", f"{s3.uri}/in/a.jpg", "../secret.jpg", f"{s3.uri}/secret.jpg", "no.jpg"]
    images = pa.array([{"bytes": None, "path": path} for path in paths], HF)
    path = write_parquet(tmp_path / "p.parquet", {"image": images})
    store.put("in/p.parquet", path.read_bytes())
    samples = list(read_samples(only_shard(f"{s3.uri}/in/p.parquet")))
    assert [sample.content for sample in samples] == [b"image", b"image", b"", b"", b""]
    assert [sample.reject for sample in samples] == ["", ""] + ["no_bytes"] * 3


def test_storage_failure_is_not_a_reject(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def down(*_: object, **__: object) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("fsspec.implementations.local.LocalFileSystem.cat_file", down)
    with pytest.raises(StorageError, match="Input/output error"):
        sample_of(data, "a.jpg")
