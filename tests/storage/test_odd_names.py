"""Promises of names that fsspec and s3fs would interpret."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import pytest

from pipeline.storage import Store, check_output, count_samples, list_shards, read_samples
from pipeline.storage.uris import read_file
from pipeline.table import open_table
from tests.storage.archives import only_shard, samples_of, write_tar
from tests.table.rows import shard, write_shard, writer

# fsspec reads the first two as chains of file systems, s3fs reads the last one as a version of `v`.
NAMES = ("shots::2024", "zip::s3", "v?versionId=3")
odd = pytest.mark.parametrize("name", NAMES)


@odd
def test_input_is_read_whatever_its_name(store: Store, tmp_path: Path, name: str) -> None:
    tar = write_tar(tmp_path / "one.tar", [("0.jpg", b"in a tar")]).read_bytes()
    store.put(f"{name}/{name}.tar", tar)
    store.put(f"{name}/{name}/{name}.jpg", b"a file")
    store.put(f"{re.split('::|[?]', name)[0]}/decoy.jpg", b"another's")
    shards = list(list_shards(store.uri(name)))
    samples = [sample for each in shards for sample in read_samples(each)]
    assert {(sample.key, sample.content) for sample in samples} == {
        ("0", b"in a tar"),
        (f"{name}/{name}.jpg", b"a file"),
    }
    assert [count_samples(each) for each in shards] == [1, 1]
    assert [sample.content for sample in samples_of(store.uri(f"{name}/{name}.tar"))] == [
        b"in a tar"
    ]
    assert only_shard(store.uri(f"{name}/{name}/{name}.jpg")).names == (f"{name}.jpg",)


@odd
def test_store_stays_in_its_own_folder(store: Store, name: str) -> None:
    check_output(store.uri(name))
    here = Store(store.uri(name))
    assert here.put_if_absent(f"{name}/x", b"1")
    assert not here.put_if_absent(f"{name}/x", b"2")
    assert here.get(f"{name}/x") == b"1"
    assert here.info(f"{name}/x").size == 1
    assert here.names() == [f"{name}/x"]
    assert store.names() == [f"{name}/{name}/x"]
    here.remove(f"{name}/x")
    assert store.names() == []


@odd
def test_table_with_an_odd_name_can_be_queried(store: Store, name: str) -> None:
    write_shard(writer(store.uri(name)), shard())
    table = open_table(store.uri(name))
    assert table.arrow("SELECT count(*) AS n FROM latents").to_pylist() == [{"n": 4}]


def test_file_is_read_by_its_whole_name(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"another's")
    (tmp_path / "a::b").write_bytes(b"settings")
    assert read_file(f"{tmp_path}/a::b") == b"settings"


def test_file_inside_an_archive_can_be_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "models.zip", "w") as archive:
        archive.writestr("x/model.pt", b"weights")
    assert read_file(f"zip://x/model.pt::{tmp_path}/models.zip") == b"weights"
