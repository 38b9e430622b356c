"""Promises of recognising images and shards, and of counting other files."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import InputError, StorageError
from pipeline.storage import ReadOptions, Store, list_shards, read_samples, recognition
from tests.storage.archives import write_parquet, write_tar

JPEG = b"\xff\xd8\xff\xe0 a JPEG by its first bytes"
PNG = b"\x89PNG\r\n\x1a\n and more"
ODD_NAMES = (
    *("noext", "a.jpg?w=200", "a.jpeg.1", "a.jpg_large", "a.pjpeg", "a.mpo", "a.jpg ", "b.JPG~"),
    *("photo.dat", "img_0001.orig", "x.image", "deep/er/no.ext.here"),
)
NO_SNIFF = ReadOptions(sniff=False)


def names(uri: str, options: ReadOptions | None = None) -> list[str]:
    return [name for shard in list_shards(uri, options=options) for name in shard.names]


def left_out(uri: str, options: ReadOptions | None = None) -> dict[str, int]:
    shards = list_shards(uri, options=options)
    list(shards)
    return shards.left_out


def test_images_are_recognised_whatever_their_names(store: Store) -> None:
    for name in ODD_NAMES:
        store.put(name, JPEG + name.encode())
    store.put("c.png", PNG)
    recognised = names(store.root)
    assert recognised == sorted([*ODD_NAMES, "c.png"])
    assert left_out(store.root) == {}
    samples = [sample for shard in list_shards(store.root) for sample in read_samples(shard)]
    assert {sample.key: sample.content for sample in samples if sample.key in ODD_NAMES} == {
        name: JPEG + name.encode() for name in ODD_NAMES
    }


def test_other_files_are_counted_by_extension(store: Store) -> None:
    store.put("a.jpg", JPEG)
    for name in ("README", "b.jpg?w=1", "c.html", "d.json", "e.tar.rar", "f.0001", "g/h.jsonl"):
        store.put(name, b"<html>no image")
    store.put("empty", b"")
    store.put(".hidden", JPEG)
    store.put("__MACOSX/a.jpg", JPEG)
    assert names(store.root) == ["a.jpg"]
    counted = {".jpg": 1, ".html": 1, ".json": 1, ".tar.rar": 1, "(numbered)": 1, ".jsonl": 1}
    assert left_out(store.root) == counted | {"(no extension)": 2, "(hidden)": 2}


def test_known_extensions_are_recognised_without_reading(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.jpg", "b.json", "c.txt", "d.tar", "e.mp4"):
        store.put(name, JPEG)
    monkeypatch.delattr(recognition, "is_image_start")
    assert names(store.root) == ["a.jpg"]


def test_without_sniffing_names_alone_decide(store: Store) -> None:
    for name in (*ODD_NAMES, "c.png"):
        store.put(name, JPEG)
    assert names(store.root, NO_SNIFF) == ["c.png"]
    assert sum(left_out(store.root, NO_SNIFF).values()) == len(ODD_NAMES)


def test_batches_of_unknown_names_keep_their_order(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recognition, "_BATCH_READS", 7)
    monkeypatch.setattr(recognition, "_BATCH_ENTRIES", 16)
    given = {f"{number:03d}{'.jpg' if number % 3 else ''}": number % 5 for number in range(60)}
    for name, is_text in given.items():
        store.put(name, b"text" if not is_text else JPEG)
    images = sorted(name for name, is_image in given.items() if is_image or name.endswith(".jpg"))
    assert names(store.root) == images
    assert left_out(store.root) == {"(no extension)": 60 - len(images)}


def test_one_file_without_extension_is_an_input(store: Store) -> None:
    store.put("photo", JPEG)
    store.put("notes", b"text")
    assert names(store.uri("photo")) == ["photo"]
    with pytest.raises(InputError, match=r"holds nothing to read \(left out: 1 \(no extension\)\)"):
        next(list_shards(store.uri("notes")))


def test_parquet_file_without_images_is_counted(store: Store, tmp_path: Path) -> None:
    captions = write_parquet(tmp_path / "c.parquet", {"url": ["http://x/1.jpg"]}).read_bytes()
    images = write_parquet(tmp_path / "i.parquet", {"image": [JPEG]}).read_bytes()
    store.put("0001.jpg", JPEG)
    store.put("metadata.parquet", captions)
    store.put("more/images.parquet", images)
    shards = list_shards(store.root)
    listed = [(shard.kind, shard.uri.rsplit("/", 1)[-1]) for shard in shards]
    assert [kind for kind, _ in listed] == ["parquet", "folder"]
    assert listed[0][1] == "images.parquet"
    assert shards.left_out == {".parquet": 1}


def test_input_of_parquet_without_images_is_refused(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "metadata.parquet", {"url": ["http://x/1.jpg"]})
    with pytest.raises(InputError, match="no column of image bytes; its columns are url"):
        next(list_shards(str(path.parent)))


def test_img2dataset_s_metadata_is_counted(tmp_path: Path) -> None:
    write_tar(tmp_path / "00000.tar", [("0.jpg", JPEG)])
    write_parquet(tmp_path / "00000.parquet", {"url": ["http://x/1.jpg"]})
    (tmp_path / "00000_stats.json").write_text("{}")
    assert left_out(str(tmp_path)) == {".parquet": 1, ".json": 1}


def test_parquet_images_beside_their_tar_are_read(store: Store, tmp_path: Path) -> None:
    """A damaged file beside its tar is metadata: a stopped img2dataset leaves such files."""
    images = write_parquet(tmp_path / "i.parquet", {"jpg": [JPEG, PNG], "key": ["a", "b"]})
    for name in ("0.tar", "1.tar", "2.tar"):
        store.put(name, write_tar(tmp_path / "s.tar", [("0.jpg", JPEG)]).read_bytes())
    store.put("0.parquet", images.read_bytes())
    store.put("1.parquet", b"PAR1 cut off")
    shards = list_shards(store.root)
    assert sorted(sample.key for shard in shards for sample in read_samples(shard)) == [
        *("0", "0", "0", "a", "b")
    ]
    assert shards.left_out == {".parquet": 1}
    assert left_out(store.root, NO_SNIFF) == {".parquet": 2}


def test_file_named_like_a_shard_is_one(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"<html>not found</html>")
    (shard,) = list_shards(str(tmp_path))
    with pytest.raises(StorageError, match="damaged after 0 samples"):
        list(read_samples(shard))


def test_storage_failure_during_recognition_fails_the_listing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that could not be read are not counted as other files."""

    def fails(*_: object) -> bytes:
        raise StorageError("cannot read: SlowDown")

    store.put("a.jpg", JPEG)
    store.put("noext", JPEG)
    monkeypatch.setattr(recognition, "read_head", fails)
    if store.root.startswith("s3://"):
        with pytest.raises(StorageError, match="SlowDown"):
            list(list_shards(store.root))
    else:
        assert names(store.root) == ["a.jpg", "noext"], "a disk is read directly"


def test_file_deleted_before_sniffing_is_left_out(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("a.jpg", JPEG)
    store.put("noext", JPEG)
    inspect = recognition._inspect_object

    def late(uri: str) -> object:
        store.remove("noext")
        return inspect(uri)

    monkeypatch.setattr(recognition, "_inspect_object", late)
    listed = names(store.root)
    assert listed == (["a.jpg"] if store.root.startswith("s3://") else ["a.jpg", "noext"])
