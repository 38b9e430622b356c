"""Promises of inputs that are lists of URIs, patterns or ranges."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.errors import InputError, StorageError
from pipeline.storage import ReadOptions, Store, check_apart, list_shards, read_samples
from tests.storage.archives import write_files, write_parquet, write_tar

IMAGE = b"\xff\xd8\xff\xe0 an image by its first bytes"


def put_tars(store: Store, *names: str, tmp_path: Path) -> None:
    for name in names:
        path = write_tar(tmp_path / "one.tar", [("0.jpg", name.encode())])
        store.put(name, path.read_bytes())


def keys(uri: str) -> list[str]:
    return [sample.key for shard in list_shards(uri) for sample in read_samples(shard)]


def contents(uri: str) -> list[bytes]:
    return [sample.content for shard in list_shards(uri) for sample in read_samples(shard)]


def ids(uri: str) -> list[str]:
    return [shard.shard_id for shard in list_shards(uri)]


def test_range_of_shards_is_read_in_its_order(store: Store, tmp_path: Path) -> None:
    put_tars(store, "00000.tar", "00001.tar", "00002.tar", "other.tar", tmp_path=tmp_path)
    assert ids(store.uri("{00002..00000}.tar")) == ["00002", "00001", "00000"]
    assert contents(store.uri("{00001..00002}.tar")) == [b"00001.tar", b"00002.tar"]


def test_shard_has_one_id_however_it_is_named(store: Store, tmp_path: Path) -> None:
    """A table can be continued with a range, a pattern or their folder."""
    put_tars(store, "0.tar", "1.tar", "a/0.tar", "b/0.tar", tmp_path=tmp_path)
    whole = ids(store.root)
    assert sorted(ids(store.uri("{0..1}.tar")) + ids(store.uri("*/0.tar"))) == sorted(whole)
    assert sorted(ids(store.uri("**/*.tar"))) == sorted(whole)


def test_shards_missing_from_a_range_are_named_first(store: Store, tmp_path: Path) -> None:
    put_tars(store, "00.tar", "02.tar", tmp_path=tmp_path)
    with pytest.raises(
        InputError, match=r"5 of the 7 files that the pattern .*do not exist"
    ) as got:
        next(list_shards(store.uri("{00..06}.tar")))
    assert "01.tar', " in str(got.value)
    assert "and 2 more" in str(got.value)


def test_pattern_matches_only_what_fits(store: Store) -> None:
    for name in ("1.jpg", "2.jpg", "3.png", "a/4.jpg", "b/c/5.jpg", "b/6.txt"):
        store.put(name, name.encode())
    assert keys(store.uri("*.jpg")) == ["1.jpg", "2.jpg"]
    assert keys(store.uri("**/*.jpg")) == ["1.jpg", "2.jpg", "a/4.jpg", "b/c/5.jpg"]
    assert keys(store.uri("[!1]*.???")) == ["2.jpg", "3.png"]
    assert keys(store.uri("{b,a}/*")) == ["b/c/5.jpg", "a/4.jpg"]


def test_pattern_that_fits_a_folder_includes_its_files(store: Store) -> None:
    for name in ("2023-12/1.jpg", "2024-01/2.jpg", "2024-02/x/3.jpg"):
        store.put(name, name.encode())
    assert keys(store.uri("2024-*")) == ["2024-01/2.jpg", "2024-02/x/3.jpg"]


def test_pattern_without_matches_is_explained(store: Store) -> None:
    store.put("1.png", b"1")
    with pytest.raises(InputError, match=r"nothing fits the pattern .*\*\.jpg'; looked for \.tar"):
        next(list_shards(store.uri("*.jpg")))


def test_existing_name_is_not_treated_as_a_pattern(store: Store) -> None:
    for name in ("[1].jpg", "1.jpg", "{a,b}.jpg", "*.jpg", "d{1..2}/x.jpg"):
        store.put(name, name.encode())
    for name in ("[1].jpg", "{a,b}.jpg", "*.jpg"):
        assert contents(store.uri(name)) == [name.encode()]
    assert keys(store.uri("d{1..2}")) == ["x.jpg"]


def test_file_named_twice_by_patterns_is_read_once(store: Store) -> None:
    for name in ("a1.jpg", "a2.jpg", "b1.jpg"):
        store.put(name, name.encode())
    shards = list_shards(store.uri("{a*,*1,a1}.jpg"))
    assert [shard.names for shard in shards] == [("a1.jpg", "a2.jpg", "b1.jpg")]
    assert shards.left_out == {"(named twice)": 2}


def test_pattern_in_the_bucket_name_is_refused() -> None:
    with pytest.raises(InputError, match=r"bucket or host of 's3://\{a,b\}/x\.tar' is part of"):
        next(list_shards("s3://{a,b}/x.tar"))


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{0..9999999}.tar", "expands to 10,000,000 names"),
        ("{0..1000}*", "1,001 patterns"),
        (f"{{1..{10**20}}}.tar", "expands to 100,000,000,000,000,000,000 names"),
        (f"{{0..{'9' * 5000}}}.tar", r"to over [10,]+ names, more than the 1,000,000 allowed: sh"),
        ("{0..N}".replace("N", "9" * 900) * 6, "expands to over"),
    ],
)
def test_braces_with_too_many_expansions_are_refused(
    tmp_path: Path, pattern: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        next(list_shards(f"{tmp_path}/{pattern}"))
    check_apart(f"{tmp_path}/{pattern}", f"{tmp_path}/out")
    (tmp_path / "list.txt").write_text(f"{pattern}\n")
    with pytest.raises(InputError, match=message):
        next(list_shards(f"{tmp_path}/list.txt"))


def test_list_may_name_files_folders_and_patterns(store: Store, tmp_path: Path) -> None:
    put_tars(store, "shards/0.tar", "shards/1.tar", tmp_path=tmp_path)
    for name in ("photos/1.jpg", "photos/deep/2.jpg", "one.jpg", "more/x1.jpg", "more/y.jpg"):
        store.put(name, name.encode())
    lines = ["# what is read", "", "one.jpg", "photos", " more/x*.jpg\r", "shards/{0..1}.tar"]
    store.put("list.txt", "\n".join(lines).encode())
    shards = list(list_shards(store.uri("list.txt")))
    (images,) = (shard for shard in shards if shard.kind == "list")
    assert images.names == ("one.jpg", "photos/1.jpg", "photos/deep/2.jpg", "more/x1.jpg")
    assert images.uri == store.uri("list.txt")
    samples = list(read_samples(images))
    assert [sample.content.decode() for sample in samples] == list(images.names)
    assert [sample.uri for sample in samples] == [store.uri(name) for name in images.names]
    assert [shard.uri for shard in shards if shard.kind == "tar"] == [
        store.uri("shards/0.tar"),
        store.uri("shards/1.tar"),
    ]


def test_list_may_name_other_folders_and_storages(store: Store, tmp_path: Path) -> None:
    far = write_files(tmp_path / "far", "1.jpg", "2.jpg")
    write_tar(tmp_path / "x" / "0.tar", [("a.jpg", b"x")])
    write_tar(tmp_path / "y" / "0.tar", [("a.jpg", b"y")])
    store.put("near.jpg", b"near")
    paths = [f"{far}/1.jpg", "near.jpg", f"file://{far}/2.jpg"]
    paths += [f"{tmp_path}/{folder}/0.tar" for folder in "xy"]
    store.put("all.lst", "\n".join(paths).encode())
    listed = list(list_shards(store.uri("all.lst")))
    assert len({shard.shard_id for shard in listed}) == 3, "ids of 0.tar and 0.tar differ"
    assert listed == list(list_shards(store.uri("all.lst")))
    assert contents(store.uri("all.lst")) == [b"x", b"y", b"1.jpg", b"near", b"2.jpg"]
    (images,) = (shard for shard in listed if shard.kind == "list")
    assert images.keys == (f"{far}/1.jpg", "near.jpg", f"{far}/2.jpg")


def test_image_missing_from_a_list_is_one_reject(store: Store) -> None:
    store.put("1.jpg", b"1")
    store.put("list.txt", b"gone.jpg\n1.jpg\nno-extension\n")
    (shard,) = list_shards(store.uri("list.txt"))
    samples = [(sample.key, sample.reject) for sample in read_samples(shard)]
    assert samples == [("gone.jpg", "unreadable"), ("1.jpg", ""), ("no-extension", "unreadable")]
    store.put("gone.jpg", b"2")
    (now,) = list_shards(store.uri("list.txt"))
    assert now.etag != shard.etag, "the slice is processed again"
    with pytest.raises(StorageError, match="changed while it was read"):
        list(read_samples(shard))


def test_shards_missing_from_a_list_are_refused(store: Store) -> None:
    store.put("1.jpg", b"1")
    store.put("list.txt", b"1.jpg\na.tar\nb.parquet\n")
    with pytest.raises(
        InputError, match=r"2 of the 2 shards that the list .* do not exist: .*a\.tar"
    ):
        next(list_shards(store.uri("list.txt")))


@pytest.mark.parametrize("content", [b"", b"# nothing\n\n", b"a.jpg\nb.jpg\n", b"\x00\xff\xfe\n"])
def test_list_without_existing_files_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(InputError, match=r"list\.txt'"):
        next(list_shards(f"{tmp_path}/list.txt"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("other.txt", "line 2 of .*'.*other.txt' is a list, and a list may not name lists"),
        ("s3://key:secret@bucket/a.jpg", "line 2 of .*carries credentials"),
        ("x*.tar", "nothing fits the pattern '.*x\\*.tar'"),
    ],
)
def test_wrong_line_of_a_list_is_named(tmp_path: Path, line: str, message: str) -> None:
    write_files(tmp_path, "1.jpg", "other.txt")
    (tmp_path / "list.txt").write_text(f"1.jpg\n{line}\n")
    with pytest.raises(InputError, match=message):
        list(list_shards(f"{tmp_path}/list.txt"))


def test_file_listed_twice_is_read_once(tmp_path: Path) -> None:
    write_files(tmp_path, "a/1.jpg", "a/b/2.jpg", "a/3.jpg", "c.jpg")
    (tmp_path / "list.txt").write_text("c.jpg\na/1.jpg\nc.jpg\na/b\na\na/b/2.jpg\na/3.jpg\n./a\n")
    shards = list_shards(f"{tmp_path}/list.txt")
    assert [shard.names for shard in shards] == [("c.jpg", "a/1.jpg", "a/b/2.jpg", "a/3.jpg")]
    assert shards.left_out == {"(named twice)": 6}


def test_listed_name_may_look_like_a_pattern(tmp_path: Path) -> None:
    write_files(tmp_path, "a[1].jpg", "{x,y}.jpg")
    (tmp_path / "list.txt").write_text("a[1].jpg\n{x,y}.jpg\n")
    assert keys(f"{tmp_path}/list.txt") == ["a[1].jpg", "{x,y}.jpg"]


def test_list_may_hold_names_not_in_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff.jpg")
    (tmp_path / name).write_bytes(b"1")
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbf\xff.jpg\r\n")
    assert keys(f"{tmp_path}/list.txt") == [r"\xff.jpg"]


def test_images_of_a_list_are_cut_into_slices(tmp_path: Path) -> None:
    write_files(tmp_path, *(f"{number}.jpg" for number in range(5)))
    (tmp_path / "list.txt").write_text("".join(f"{number}.jpg\n" for number in (4, 3, 2, 1, 0)))
    shards = list(list_shards(f"{tmp_path}/list.txt", files_per_shard=2))
    assert [shard.shard_id for shard in shards] == [f"files-{number:05d}" for number in range(3)]
    assert shards[0].names == ("4.jpg", "3.jpg")


@pytest.mark.parametrize(
    ("given", "output", "refused"),
    [
        ("in", "in/table", True),
        ("in/*.jpg", "in/table", False),
        ("in/*", "in/table", True),
        ("in/**/*.jpg", "in/table", True),
        ("in/{a,b}/*.jpg", "in/table", False),
        ("in/{a,b}", "in/b/table", True),
        ("in/list.txt", "in/a/table", True),
        ("in/list.txt", "in/table", False),
    ],
)
def test_output_inside_the_listed_files_is_refused(
    tmp_path: Path, given: str, output: str, *, refused: bool
) -> None:
    write_files(tmp_path / "in", "a/1.jpg", "b/2.jpg", "3.jpg")
    (tmp_path / "in" / "list.txt").write_text("a\n3.jpg\n")
    if not refused:
        check_apart(f"{tmp_path}/{given}", f"{tmp_path}/{output}")
        return
    with pytest.raises(InputError, match="choose an output beside it"):
        check_apart(f"{tmp_path}/{given}", f"{tmp_path}/{output}")


@pytest.mark.parametrize("sniff", [True, False])
def test_named_parquet_file_of_images_is_read(tmp_path: Path, *, sniff: bool) -> None:
    """Without sniffing, a Parquet file beside its tar is metadata, unless it is named."""
    write_tar(tmp_path / "in/0.tar", [])
    write_parquet(tmp_path / "in/0.parquet", {"image": [IMAGE]})
    write_parquet(tmp_path / "in/1.parquet", {"url": ["http://x/1.jpg"]})
    (tmp_path / "list.txt").write_text("in/0.parquet\nin/0.tar\n")

    def kinds(given: str) -> list[str]:
        shards = list_shards(f"{tmp_path}/{given}", options=ReadOptions(sniff=sniff))
        return sorted(shard.kind for shard in shards)

    assert kinds("in") == (["parquet", "tar"] if sniff else ["tar"])
    for given in ("list.txt", "in/0.{parquet,tar}", "in/0.{tar,parquet}", "in/0.*", "in/*"):
        assert kinds(given) == ["parquet", "tar"]
    assert kinds("in/*.parquet") == ["parquet"]
