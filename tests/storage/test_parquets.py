"""Promises of reading Parquet shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import InputError, StorageError
from pipeline.storage import read_samples
from tests.storage.archives import only_shard, samples_of, write_parquet

HF = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def found(path: Path) -> list[tuple[str, bytes]]:
    return [(one.key, one.content) for one in samples_of(path)]


def test_hugging_face_images_are_keyed_by_their_path(tmp_path: Path) -> None:
    images = pa.array([{"bytes": b"1", "path": "a/1.jpg"}, {"bytes": b"2", "path": None}], HF)
    path = write_parquet(tmp_path / "p.parquet", {"image": images, "label": [0, 1]})
    assert found(path) == [("a/1.jpg", b"1"), ("00000001", b"2")]
    assert [one.uri for one in samples_of(path)] == [f"{path}#0", f"{path}#1"]


@pytest.mark.parametrize("name", ["bytes", "jpg", "content", "anything"])
@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_the_only_column_of_bytes_is_the_image(
    tmp_path: Path, name: str, kind: pa.DataType
) -> None:
    path = write_parquet(tmp_path / "p.parquet", {"label": ["x"], name: pa.array([b"1"], kind)})
    assert found(path) == [("00000000", b"1")]


def test_of_several_the_one_with_the_usual_name_is_taken(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "p.parquet", {"mask": [b"0"], "image": [b"1"]})
    assert found(path) == [("00000000", b"1")]


def test_an_ambiguous_file_names_its_columns(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "p.parquet", {"left": [b"0"], "right": [b"1"]})
    with pytest.raises(InputError, match=r"several columns of bytes \(left, right\)"):
        samples_of(path)


def test_a_file_without_bytes_names_its_columns(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "p.parquet", {"url": ["x"], "n": [1]})
    with pytest.raises(
        InputError, match=r"no column of image bytes; .* url \(string\), n \(int64\)"
    ):
        samples_of(path)


@pytest.mark.parametrize(
    ("column", "values", "keys"),
    [
        ("__key__", ["a", "a", "b"], ["a", "a~2", "b"]),
        ("image_id", [7, 7, 8], ["7", "7~2", "8"]),
        ("path", ["x/1.jpg", None, ""], ["x/1.jpg", "00000001", "00000002"]),
        ("id", [b"k", b"\xff", b"m"], ["k", r"\xff", "m"]),
    ],
)
def test_keys_come_from_the_key_column_and_never_collide(
    tmp_path: Path, column: str, values: list[Any], keys: list[str]
) -> None:
    columns = {column: values, "image": [b"0", b"1", b"2"]}
    path = write_parquet(tmp_path / "p.parquet", columns)
    assert found(path) == list(zip(keys, [b"0", b"1", b"2"], strict=True))


def test_a_key_that_no_text_can_be_made_of_gives_way_to_the_row_number(tmp_path: Path) -> None:
    columns = {"id": pa.array([1, 2**30], pa.date32()), "image": [b"0", b"1"]}
    path = write_parquet(tmp_path / "p.parquet", columns)
    assert [key for key, _ in found(path)] == ["1970-01-02", "00000001"]


def test_a_column_name_that_is_not_utf8_damages_the_file(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "p.parquet", {"image": [b"1"], "mask": ["x"]})
    path.write_bytes(path.read_bytes().replace(b"mask", b"m\xffsk"))
    with pytest.raises(StorageError, match="is damaged after 0 samples"):
        samples_of(path)


def test_bytes_inside_a_struct_inside_a_struct_are_no_images(tmp_path: Path) -> None:
    images = pa.array([{"bytes": {"bytes": b"1", "path": "x"}}], pa.struct([("bytes", HF)]))
    with pytest.raises(InputError, match="no column of image bytes"):
        samples_of(write_parquet(tmp_path / "p.parquet", {"image": images}))


def test_a_null_image_is_a_sample(tmp_path: Path) -> None:
    images = pa.array([None, {"bytes": None, "path": "x"}, {"bytes": b"1", "path": "y"}], HF)
    path = write_parquet(tmp_path / "p.parquet", {"image": images})
    assert found(path) == [("00000000", b""), ("x", b""), ("y", b"1")]


def test_rows_keep_their_order_over_row_groups(tmp_path: Path) -> None:
    images = [str(i).encode() for i in range(100)]
    path = write_parquet(tmp_path / "p.parquet", {"image": images}, row_group_size=7)
    assert [content for _, content in found(path)] == images
    assert [key for key, _ in found(path)] == [f"{i:08d}" for i in range(100)]


@pytest.mark.parametrize("cut", [10, 500, -4])
def test_a_truncated_file_fails(tmp_path: Path, cut: int) -> None:
    path = write_parquet(tmp_path / "p.parquet", {"image": [b"1" * 1000]})
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(StorageError, match=r"p\.parquet' is damaged after 0 samples"):
        samples_of(path)


def test_a_damaged_page_fails_after_what_came_before_it(tmp_path: Path) -> None:
    images = [bytes([i]) * 50_000 for i in range(64)]
    path = write_parquet(tmp_path / "p.parquet", {"image": images}, row_group_size=16)
    place = pq.read_metadata(path).row_group(2).column(0).data_page_offset
    content = bytearray(path.read_bytes())
    content[place : place + 40] = b"\xff" * 40
    path.write_bytes(content)
    seen = 0
    with pytest.raises(StorageError, match=r"p\.parquet"):  # noqa: PT012 - counts on the way
        for _ in read_samples(only_shard(path)):
            seen += 1
    assert seen == 32
