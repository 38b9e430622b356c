"""Promises of listing the shards of an input."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from pipeline.engine.messages import ShardTask, from_row, to_row
from pipeline.errors import InputError
from pipeline.storage import ReadOptions, Store, list_shards, read_samples
from pipeline.storage.shards import shard_id_of
from tests.conftest import Bucket
from tests.storage.archives import only_shard, write_files, write_parquet, write_tar


def ids(uri: Path | str, **options: int) -> list[str]:
    return [shard.shard_id for shard in list_shards(str(uri), **options)]


def test_tar_is_one_shard_named_by_its_stem(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "shard-0001.tar", [("0.jpg", b"x")])
    shard = only_shard(path)
    assert (shard.shard_id, shard.kind, shard.uri) == ("shard-0001", "tar", str(path))
    assert shard.size == path.stat().st_size


def test_id_is_equal_for_file_and_folder(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "in" / "odd name.tar.gz", [], "w:gz")
    assert ids(path) == ids(path.parent)


def test_other_paths_get_a_digest() -> None:
    paths = ["0.tar.gz", "0.tgz", "0.parquet", "a/0.tar", "b/0.tar", "ü.tar", "o.tar", "a b.tar"]
    ids = [shard_id_of(path) for path in paths]
    assert len(set(ids)) == len(paths)
    assert [name for name in ids if not re.fullmatch(r"[A-Za-z0-9._-]+", name)] == []
    assert ids[6] == "o"
    assert all(re.search(r"-[0-9a-f]{8}$", name) for name in ids if name != "o")


@pytest.mark.parametrize(
    "name", ["files-00000.tar", "a-0123abcd.tar", "_a.tar", ".tar", "x" * 300 + ".tar"]
)
def test_name_like_a_generated_id_gets_a_digest(name: str) -> None:
    shard_id = shard_id_of(name)
    assert shard_id != name.removesuffix(".tar")
    assert len(shard_id) < 120


def test_no_shard_id_is_hidden_from_folder_readers(tmp_path: Path) -> None:
    """Readers of a folder skip names that begin with `_` or `.`."""
    names = ["_train-0.tar", "._.tar", "_x/0.tar", "-_/0.tar", f"_{'x' * 79}.tgz", "train-0.tar"]
    for name in names:
        write_parquet(tmp_path / f"{shard_id_of(name)}-00000.parquet", {"name": [name]})
    assert sorted(pq.read_table(tmp_path)["name"].to_pylist()) == sorted(names)
    assert sorted(pd.read_parquet(tmp_path)["name"]) == sorted(names)


def test_ids_of_equal_names_differ(tmp_path: Path) -> None:
    for folder in ("a", "b", "."):
        write_tar(tmp_path / folder / "0.tar", [])
        write_tar(tmp_path / folder / "0.tar.gz", [], "w:gz")
        write_parquet(tmp_path / folder / "0.tar.parquet", {"image": [b"x"]})
    assert len(set(ids(tmp_path))) == 9


def test_metadata_beside_tars_of_img2dataset_is_skipped(tmp_path: Path) -> None:
    for stem in ("00000", "00001", "sub/00000"):
        write_tar(tmp_path / f"{stem}.tar", [])
        write_parquet(tmp_path / f"{stem}.parquet", {"url": ["http://x/0.jpg"]})
        (tmp_path / f"{stem}_stats.json").write_text("{}")
    write_tar(tmp_path / "a.tgz", [], "w:gz")
    for stem in ("a", "00000.more", "alone", "z"):
        write_parquet(tmp_path / f"{stem}.parquet", {"image": [b"x"]})
    expected = ["00000.tar", "00001.tar", "a.tgz", "sub/00000.tar"]
    expected += ["00000.more.parquet", "alone.parquet", "z.parquet"]
    for sniff, more in ((True, ["a.parquet"]), (False, [])):
        shards = list_shards(str(tmp_path), options=ReadOptions(sniff=sniff))
        names = [shard.uri.removeprefix(f"{tmp_path}/") for shard in shards]
        assert sorted(names) == sorted([*expected, *more]), "by the name alone without sniffing"


def test_metadata_beside_folders_of_img2dataset_is_skipped(tmp_path: Path) -> None:
    """img2dataset's default is `--output_format files`. Parquet files with images are shards."""
    for stem in ("00000", "00001", "both"):
        write_files(tmp_path, f"{stem}/0.jpg", f"{stem}/0.json", f"{stem}_stats.json")
        write_parquet(tmp_path / f"{stem}.parquet", {"url": ["http://x/0.jpg"]})
    write_parquet(tmp_path / "both.parquet", {"url": ["http://x/0.jpg"], "jpg": [b"x"]})
    (tmp_path / "damaged").mkdir()
    write_files(tmp_path, "damaged/0.jpg", "damaged.parquet")
    shards = list(list_shards(str(tmp_path)))
    files = [Path(shard.uri).name for shard in shards if shard.kind == "parquet"]
    assert files == ["both.parquet", "damaged.parquet"], "the reader reports what is wrong with it"
    assert shards[-1].names == ("00000/0.jpg", "00001/0.jpg", "both/0.jpg", "damaged/0.jpg")


def test_folder_is_cut_in_the_order_of_paths(tmp_path: Path) -> None:
    names = ["b.jpg", "a/2.JPG", "a/1.png", "a-1.webp", "a/b/0.jpeg", "z/z.heic"]
    write_files(tmp_path, *names)
    shards = list(list_shards(str(tmp_path), files_per_shard=4))
    assert [shard.shard_id for shard in shards] == ["files-00000", "files-00001"]
    assert [name for shard in shards for name in shard.names] == sorted(names)
    assert shards[0].sizes == tuple(len(name) for name in shards[0].names)


def test_folder_may_hold_shards_and_images(tmp_path: Path) -> None:
    write_files(tmp_path, "x/1.jpg", "readme.txt", "labels.csv")
    write_tar(tmp_path / "s.tar", [])
    assert ids(tmp_path) == ["s", "files-00000"]


def test_one_image_is_an_input(tmp_path: Path) -> None:
    write_files(tmp_path, "me.jpg", "you.jpg")
    samples = list(read_samples(only_shard(tmp_path / "me.jpg")))
    assert [(sample.key, sample.content) for sample in samples] == [("me.jpg", b"me.jpg")]


def test_hidden_files_are_left_out(tmp_path: Path) -> None:
    hidden = [".DS_Store", "._1.jpg", ".cache/2.jpg", "__MACOSX/3.jpg"]
    write_files(tmp_path, "1.jpg", *hidden)
    assert only_shard(tmp_path).names == ("1.jpg",)


def test_changed_file_changes_only_its_slice(tmp_path: Path) -> None:
    write_files(tmp_path, "1.jpg", "2.jpg", "3.jpg")
    before = list(list_shards(str(tmp_path), files_per_shard=2))
    assert before == list(list_shards(str(tmp_path), files_per_shard=2))
    os.utime(tmp_path / "3.jpg", ns=(1, 1))
    after = list(list_shards(str(tmp_path), files_per_shard=2))
    assert after[0] == before[0]
    assert after[1].etag != before[1].etag


def test_changed_tar_changes_its_etag(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", [("0.jpg", b"1")])
    before = only_shard(path)
    write_tar(path, [("0.jpg", b"2")])
    os.utime(path, ns=(1, 1))
    after = only_shard(path)
    assert after.size == before.size
    assert after.etag != before.etag


@pytest.mark.parametrize("what", ["missing", "empty", "text", "text file"])
def test_input_with_nothing_to_read_is_explained(tmp_path: Path, what: str) -> None:
    if what != "missing":
        (tmp_path / what).mkdir()
    uri = tmp_path / what
    if what.startswith("text"):
        write_files(uri, "readme.txt")
    if what == "text file":
        uri /= "readme.txt"
    with pytest.raises(InputError, match=r"looked for \.tar, .*image files") as caught:
        list(list_shards(str(uri)))
    assert str(uri) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_bucket_is_an_input_error(s3: Bucket) -> None:
    with pytest.raises(InputError, match="does not exist"):
        list(list_shards("s3://no-such-bucket/x"))
    with pytest.raises(InputError, match="does not exist"):
        list(list_shards(f"{s3.uri}/nothing"))


def test_folder_links_are_followed_without_loops(tmp_path: Path) -> None:
    write_files(tmp_path / "far", "1.jpg")
    write_files(tmp_path / "in", "0.jpg")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "far")
    (tmp_path / "in" / "self").symlink_to(tmp_path / "in")
    assert only_shard(tmp_path / "in").names == ("0.jpg", "link/1.jpg")


def test_shard_with_any_names_reaches_a_worker(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff\xfe.jpg")
    (tmp_path / name).write_bytes(b"1")
    shard = only_shard(tmp_path)
    assert shard.names == (name,)
    task = from_row(to_row(ShardTask(shard, part_size=1)))
    assert task.shard == shard
    (sample,) = read_samples(shard)
    assert (sample.key, sample.content) == (r"\xff\xfe.jpg", b"1")


def test_bucket_is_listed_and_read_like_a_disk(tmp_path: Path, s3: Bucket) -> None:
    write_files(tmp_path, *(f"{folder}/{i}.jpg" for folder in ("a", "b") for i in range(20)))
    write_files(tmp_path, "a-1.jpg", "a.b/0.jpg", "ä ö+%20.png")
    write_tar(tmp_path / "s.tar", [("0.jpg", b"tar")])
    write_tar(tmp_path / "t" / "s.tgz", [("0.jpg", b"gz")], "w:gz")
    write_parquet(tmp_path / "p.parquet", {"image": [b"parquet"]})
    store = Store(f"{s3.uri}/some/in")
    for path in tmp_path.rglob("*.*"):
        if path.is_file():
            store.put(str(path.relative_to(tmp_path)), path.read_bytes())
    here = list(list_shards(str(tmp_path), files_per_shard=15))
    there = list(list_shards(store.root, files_per_shard=15))
    assert [(a.shard_id, a.names, a.size) for a in here] == [
        (b.shard_id, b.names, b.size) for b in there
    ]
    for mine, other in zip(here, there, strict=True):
        ours = [(sample.key, sample.content) for sample in read_samples(mine)]
        assert ours == [(sample.key, sample.content) for sample in read_samples(other)]
        assert len(ours) >= 1
        assert all(sample.uri.startswith(f"{s3.uri}/some/in/") for sample in read_samples(other))


def test_bucket_listing_is_never_stale(s3: Bucket) -> None:
    store = Store(f"{s3.uri}/in")
    store.put("1.jpg", b"1")
    before = only_shard(store.root)
    store.put("1.jpg", b"2")
    changed = only_shard(store.root)
    assert changed.etag != before.etag
    store.put("2.jpg", b"2")
    assert only_shard(store.root).names == ("1.jpg", "2.jpg")


def test_whole_bucket_is_an_input(s3: Bucket) -> None:
    store = Store(s3.uri)
    store.put("a/1.jpg", b"1")
    store.put("2.jpg", b"2")
    assert store.names() == ["2.jpg", "a/1.jpg"]
    samples = [(sample.key, sample.uri) for sample in read_samples(only_shard(s3.uri))]
    assert samples == [("2.jpg", f"{s3.uri}/2.jpg"), ("a/1.jpg", f"{s3.uri}/a/1.jpg")]
