"""Promises of choosing the samples among the members of tars and zips."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from PIL import Image

from pipeline.errors import StorageError
from pipeline.storage import LeftOut, ReadOptions, count_samples, read_samples
from pipeline.storage.readers import archive_members
from tests.storage.archives import only_shard, write_tar

ONE, ALL = "one", "all"


def write_zip(path: Path, content: Iterable[tuple[str, bytes]]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, member in content:
            archive.writestr(name, member)
    return path


@pytest.fixture(params=[("s.tar", write_tar), ("s.zip", write_zip)], ids=["tar", "zip"])
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Path]:
    """Return a writer of archives whose members hold their own names, or the given content."""
    name, write = request.param

    def of(*names: str, **content: bytes) -> Path:
        given = [(name, name.encode()) for name in names]
        path: Path = write(tmp_path / name, [*given, *content.items()])
        return path

    return of


def chosen(path: Path, image_field: str = ONE, **options: bool) -> tuple[list[str], LeftOut]:
    """Return the keys of the samples and the left-out counts, and check that counting agrees."""
    left_out, counted = LeftOut(), LeftOut()
    read_options = ReadOptions(image_field=image_field, **options)
    samples = list(read_samples(only_shard(path), None, read_options, left_out))
    assert count_samples(only_shard(path), None, read_options, counted) == len(samples)
    assert counted == left_out
    return [sample.key for sample in samples], left_out


def test_photo_is_chosen_over_its_mask(archive: Callable[..., Path]) -> None:
    path = archive("0.jpg", "0.seg.png", "0.json", "1.jpg", "1.seg.png", "1.json")
    keys, left_out = chosen(path)
    assert keys == ["0", "1"]
    assert left_out == {".seg.png (another image of a key)": 2, ".json": 2}


def test_photo_is_chosen_anywhere_in_its_key(archive: Callable[..., Path]) -> None:
    path = archive("0.depth.png", "0.jpg", "0.seg.png", "1.json", "1.left.jpg", "1.right.jpg")
    keys, left_out = chosen(path)
    assert keys == ["0", "1.left"]
    assert sum(left_out.values()) == 4


@pytest.mark.parametrize(
    "names",
    [
        ("IMG.1.jpg", "IMG.2.jpg", "IMG.3.jpg"),
        ("IMG.jpg", "IMG.1.jpg", "IMG.2.jpg"),
        ("photo.v1.jpg", "photo.v2.jpg", "photo.jpg"),
        ("J.K.Rowling.jpg", "J.R.R.Tolkien.jpg"),
        ("St. Peter.jpg", "St. Paul.jpg", "St.jpg"),
        ("2019.05.12 beach.jpg", "2019.05.12 holiday.jpg"),
        ("a.left.jpg", "b.left.jpg", "c.v2.jpg"),
        ("J.K.Rowling.jpg", "J.K.Rowling.json", "J.R.R.Tolkien.jpg", "J.R.R.Tolkien.json"),
    ],
)
def test_photos_with_dots_in_names_are_all_read(
    archive: Callable[..., Path], names: tuple[str, ...]
) -> None:
    photos = [name for name in names if name.endswith(".jpg")]
    keys, left_out = chosen(archive(*names))
    assert sorted(keys) == sorted(name.removesuffix(".jpg") for name in photos)
    assert sum(left_out.values()) == len(names) - len(photos)


def test_names_beyond_the_memory_limit_are_all_read(archive: Callable[..., Path]) -> None:
    keys, left_out = chosen(archive(*(f"J.{chr(97 + number)}.jpg" for number in range(26))))
    assert len(keys) == 26
    assert left_out == {}


def test_large_images_of_one_key_leave_memory_early(
    archive: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive_members, "_HELD_BYTES", 10)
    keys, left_out = chosen(archive("a.left.jpg", "a.right.jpg", "a.up.jpg"))
    assert (keys, left_out) == (["a.left", "a.right", "a.up"], {})


def test_mask_far_behind_its_photo_is_skipped(archive: Callable[..., Path]) -> None:
    keys, left_out = chosen(archive("0.jpg", "1.jpg", "0.seg.png", "1.seg.png", "1.v2.png"))
    assert keys == ["0", "1", "1.v2"]
    assert left_out == {".seg.png (another image of a key)": 2}


def test_image_field_all_reads_every_image(archive: Callable[..., Path]) -> None:
    path = archive("0.jpg", "0.png", "0.seg.png", "0.json")
    assert chosen(path, ALL) == (["0", "0.png", "0.seg"], {".json": 1})
    keys, left_out = chosen(path)
    assert keys == ["0"]
    assert sum(left_out.values()) == 3


@pytest.mark.parametrize(
    ("fields", "keys", "left_out"),
    [
        (
            "jpg",
            ["0"],
            {".seg.png (another image of a key)": 2, ".png (another image of a key)": 1},
        ),
        ("png,jpg", ["1", "0"], {".seg.png (another image of a key)": 2}),
        ("seg.png", ["0.seg", "1.seg"], {".jpg (another image of a key)": 1}),
        ("webp", [], {".jpg (another image of a key)": 1}),
    ],
)
def test_only_the_named_image_fields_are_read(
    archive: Callable[..., Path], fields: str, keys: list[str], left_out: dict[str, int]
) -> None:
    chosen_keys, passed_over = chosen(archive("0.jpg", "0.seg.png", "1.seg.png", "1.png"), fields)
    assert sorted(chosen_keys) == sorted(keys)
    assert left_out.items() <= passed_over.items()


def test_preferred_of_two_named_fields_is_read(
    archive: Callable[..., Path],
) -> None:
    path = archive("0.jpg", "0.png", "0.txt")
    assert chosen(path, "png,jpg") == (["0"], {".jpg (another image of a key)": 1, ".txt": 1})
    (sample,) = read_samples(only_shard(path), None, ReadOptions(image_field="png,jpg"))
    assert sample.content == b"0.png"


def png() -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(sink, "PNG")
    return sink.getvalue()


def test_images_without_known_extension_are_recognised_by_bytes(
    archive: Callable[..., Path],
) -> None:
    content = {"0.image": png(), "1.input": png(), "2": png(), "a.jpg?w=200": png()}
    path = archive("3.img", **content, **{"4.0001": png(), "4.0002": png()})
    keys, left_out = chosen(path)
    assert keys == ["0", "1", "2", "a", "4.0001", "4.0002"]
    assert left_out == {".img": 1}
    keys, left_out = chosen(path, sniff=False)
    assert keys == []
    assert sum(left_out.values()) == 7


def test_text_that_begins_like_an_image_is_skipped(archive: Callable[..., Path]) -> None:
    content = {"0.caption": b"BMW at night", "0.words": b"BMW at night, on a road", "0.txt": png()}
    keys, left_out = chosen(archive("0.jpg", **content))
    assert keys == ["0"]
    assert left_out == {".caption": 1, ".words": 1, ".txt": 1}


def test_nested_archives_and_hidden_files_are_counted(archive: Callable[..., Path]) -> None:
    keys, left_out = chosen(archive("inner.tar", "x/more.zip", "old.tar.gz", "._0.jpg"))
    assert keys == []
    assert left_out == {".tar": 1, ".zip": 1, ".tar.gz": 1, "(hidden)": 1}


def test_same_path_twice_gives_two_samples(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", [("0.jpg", b"1"), ("0.jpg", b"2"), ("0.jpg", b"3")])
    assert chosen(path)[0] == ["0", "0.jpg", "0.jpg~2"]


def test_samples_before_the_damage_are_yielded(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", [(f"{number}.jpg", b"1" * 600) for number in range(4)])
    path.write_bytes(path.read_bytes()[: 2 * 1536 + 100])
    keys = list[str]()
    with pytest.raises(StorageError, match="is damaged after 2 samples"):
        keys.extend(
            sample.key
            for sample in read_samples(only_shard(path), None, ReadOptions(image_field=ONE))
        )
    assert keys == ["0", "1"]
