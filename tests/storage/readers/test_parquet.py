"""Promises of reading Parquet shards."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import InputError, StorageError
from pipeline.storage import (
    LeftOut,
    ReadOptions,
    arrow_type,
    check_columns,
    count_samples,
    kept_array,
    kept_types,
    read_samples,
)
from pipeline.storage.readers import parquet
from tests.storage.archives import only_shard, samples_of, write_parquet

HF = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def contents_of(path: Path) -> list[tuple[str, bytes]]:
    return [(sample.key, sample.content) for sample in samples_of(path)]


def test_hugging_face_images_are_keyed_by_their_path(tmp_path: Path) -> None:
    images = pa.array([{"bytes": b"1", "path": "a/1.jpg"}, {"bytes": b"2", "path": None}], HF)
    path = write_parquet(tmp_path / "p.parquet", {"image": images, "label": [0, 1]})
    assert contents_of(path) == [("a/1.jpg", b"1"), ("00000001", b"2")]
    assert [sample.uri for sample in samples_of(path)] == [f"{path}#0", f"{path}#1"]


@pytest.mark.parametrize("name", ["bytes", "jpg", "content", "anything"])
@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_the_only_column_of_bytes_is_the_image(
    tmp_path: Path, name: str, kind: pa.DataType
) -> None:
    path = write_parquet(tmp_path / "p.parquet", {"label": ["x"], name: pa.array([b"1"], kind)})
    assert contents_of(path) == [("00000000", b"1")]


def test_usual_column_name_is_preferred(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "p.parquet", {"mask": [b"0"], "image": [b"1"]})
    assert contents_of(path) == [("00000000", b"1")]


def test_ambiguous_file_is_refused_with_its_columns(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "p.parquet", {"left": [b"0"], "right": [b"1"]})
    with pytest.raises(
        InputError, match=r"several columns of images \(left, right\).*--image-column"
    ):
        samples_of(path)


def test_file_without_bytes_is_refused_with_its_columns(tmp_path: Path) -> None:
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
def test_keys_from_the_key_column_are_unique(
    tmp_path: Path, column: str, values: list[Any], keys: list[str]
) -> None:
    columns = {column: values, "image": [b"0", b"1", b"2"]}
    path = write_parquet(tmp_path / "p.parquet", columns)
    assert contents_of(path) == list(zip(keys, [b"0", b"1", b"2"], strict=True))


def test_invalid_key_is_replaced_by_the_row_number(tmp_path: Path) -> None:
    columns = {"id": pa.array([1, 2**30], pa.date32()), "image": [b"0", b"1"]}
    path = write_parquet(tmp_path / "p.parquet", columns)
    assert [key for key, _ in contents_of(path)] == ["1970-01-02", "00000001"]


def test_column_name_not_in_utf8_is_damage(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "p.parquet", {"image": [b"1"], "mask": ["x"]})
    path.write_bytes(path.read_bytes().replace(b"mask", b"m\xffsk"))
    with pytest.raises(StorageError, match="is damaged after 0 samples"):
        samples_of(path)


def test_bytes_in_nested_structs_are_not_images(tmp_path: Path) -> None:
    images = pa.array([{"bytes": {"bytes": b"1", "path": "x"}}], pa.struct([("bytes", HF)]))
    with pytest.raises(InputError, match="no top-level column of image bytes"):
        samples_of(write_parquet(tmp_path / "p.parquet", {"image": images}))


def test_null_image_is_a_reject_with_its_path(tmp_path: Path) -> None:
    images = pa.array(
        [None, {"bytes": None, "path": "x.jpg"}, {"bytes": b"", "path": None}, {"bytes": b"1"}], HF
    )
    path = write_parquet(tmp_path / "p.parquet", {"image": images})
    samples = samples_of(path)
    assert [sample.reject for sample in samples] == ["no_bytes"] * 3 + [""]
    assert [sample.key for sample in samples] == ["00000000", "x.jpg", "00000002", "00000003"]
    assert "no file to read at 'x.jpg'" in samples[1].detail
    assert "neither bytes nor the path" in samples[2].detail
    assert samples[3].content == b"1"


@pytest.mark.parametrize("kind", [pa.binary(), HF])
def test_dictionary_encoded_images_are_read(tmp_path: Path, kind: pa.DataType) -> None:
    plain = [b"1", b"2", b"1", None]
    values = plain if kind != HF else [image and {"bytes": image, "path": None} for image in plain]
    encoded: pa.Array = pa.array(plain, pa.binary()).dictionary_encode()
    if kind == HF:
        paths = pa.array([None] * 4, pa.string())
        encoded = pa.StructArray.from_arrays([encoded, paths], ["bytes", "path"])
    columns = {"image": encoded, "id": pa.array(["a", "b", "c", "d"]).dictionary_encode()}
    path = write_parquet(tmp_path / "p.parquet", columns, row_group_size=3)
    assert pa.types.is_dictionary(pq.read_schema(path).field("id").type)
    assert contents_of(path) == [("a", b"1"), ("b", b"2"), ("c", b"1"), ("d", b"")]
    assert len(values) == count_samples(only_shard(path))


def test_dictionary_is_not_copied_into_every_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arrow puts the whole dictionary into each batch: with one per row that is quadratic."""
    images = pa.array([bytes([number]) * 100 for number in range(50)]).dictionary_encode()
    path = write_parquet(tmp_path / "p.parquet", {"image": images})
    sizes = []

    def measured(batch: pa.RecordBatch, *others: Any) -> Any:
        sizes.append(batch.get_total_buffer_size())
        return row(batch, *others)

    row = parquet._row
    monkeypatch.setattr(parquet, "_row", measured)
    assert len(contents_of(path)) == 50
    assert max(sizes) < 50 * 100


@pytest.mark.parametrize("kind", [pa.binary(), HF])
@pytest.mark.parametrize("large", [False, True])
def test_each_image_of_a_list_is_a_sample(tmp_path: Path, kind: pa.DataType, large: bool) -> None:
    rows = [[b"1", b"2"], [], None, [b"3"], [None]]
    if kind == HF:
        rows = [row and [{"bytes": image, "path": None} for image in row] for row in rows]  # type: ignore[misc]
    lists = pa.array(rows, pa.large_list(kind) if large else pa.list_(kind))
    columns = {"images": lists, "caption": ["x"] * 5}
    path = write_parquet(tmp_path / "p.parquet", columns, row_group_size=2)
    assert contents_of(path) == [
        ("00000000/0", b"1"),
        ("00000000/1", b"2"),
        ("00000001", b""),
        ("00000002", b""),
        ("00000003/0", b"3"),
        ("00000004/0", b""),
    ]
    assert [sample.reject for sample in samples_of(path)] == [
        "",
        "",
        *["no_bytes"] * 2,
        "",
        "no_bytes",
    ]
    assert samples_of(path)[1].uri == f"{path}#0/1"
    assert count_samples(only_shard(path)) == 6


def test_image_column_is_chosen_by_name(tmp_path: Path) -> None:
    nested = pa.array([{"left": b"3", "right": b"4"}])
    columns = {"image": [b"1"], "mask": [b"2"], "eyes": nested, "label": [1]}
    path = write_parquet(tmp_path / "p.parquet", columns)
    for name, content in (("mask", b"2"), ("eyes.right", b"4")):
        options = ReadOptions(image_column=name)
        check_columns(only_shard(path), options)
        (sample,) = read_samples(only_shard(path), None, options)
        assert sample.content == content
    for name, problem in (("nose", "has no column 'nose'"), ("label", "holds no image bytes but")):
        with pytest.raises(InputError, match=f"--image-column: .*{problem}"):
            check_columns(only_shard(path), ReadOptions(image_column=name))


def test_error_names_image_columns_inside_structs(tmp_path: Path) -> None:
    nested = pa.array([{"left": b"3", "right": b"4"}])
    path = write_parquet(tmp_path / "p.parquet", {"eyes": nested})
    with pytest.raises(InputError, match=r"eyes\.left, eyes\.right: name one with --image-column"):
        samples_of(path)


KEPT = {
    "label": (pa.int32(), [1, None], "int32", [1, None]),
    "big": (pa.uint64(), [2**64 - 1, 0], "uint64", [2**64 - 1, 0]),
    "half": (pa.float16(), [0.5, 1], "float", [0.5, 1.0]),
    "caption": (pa.string(), ["ä", ""], "string", ["ä", ""]),
    "class": (pa.dictionary(pa.int8(), pa.string()), ["x", "y"], "string", ["x", "y"]),
    "seen": (pa.timestamp("us", "UTC"), [5, None], "timestamp[us, tz=UTC]", [5, None]),
    "day": (pa.date32(), [1, 2], "date32[day]", [1, 2]),
    "tags": (pa.list_(pa.string()), [["a", "ä"], None], "string", ['["a", "ä"]', None]),
    "price": (pa.decimal128(5, 2), [Decimal("1.50"), None], "string", ["1.50", None]),
    "nothing": (pa.null(), [None, None], "string", [None, None]),
    "yes": (pa.bool_(), [True, False], "bool", [True, False]),
}


def test_kept_columns_are_read_with_their_types(tmp_path: Path) -> None:
    columns = {name: pa.array(values, kind) for name, (kind, values, _, _) in KEPT.items()}
    path = write_parquet(tmp_path / "p.parquet", {"image": [b"1", b"2"], **columns})
    types = kept_types(only_shard(path), list(KEPT))
    assert types == {name: kind for name, (_, _, kind, _) in KEPT.items()}
    left_out = LeftOut()
    options = ReadOptions(keep_columns=types)
    rows = [json.loads(s.fields) for s in read_samples(only_shard(path), None, options, left_out)]
    for name, (_, _, kind, values) in KEPT.items():
        assert [row[name] for row in rows] == values, name
        assert kept_array(values, arrow_type(kind)).type == arrow_type(kind)
    assert left_out["(no nothing)"] == 2
    assert left_out["(no label)"] == 1


@pytest.mark.parametrize(
    ("name", "problem"),
    [("colour", r"has no column 'colour'; its columns are image, mask"), ("mask", "bytes are not")],
)
def test_unusable_kept_column_is_refused_early(tmp_path: Path, name: str, problem: str) -> None:
    path = write_parquet(tmp_path / "p.parquet", {"image": [b"1"], "mask": [b"2"]})
    with pytest.raises(InputError, match=f"--keep-columns: .*{problem}"):
        kept_types(only_shard(path), [name])


def test_shard_with_other_types_is_refused(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "p.parquet", {"image": [b"1"], "label": ["cat"]})
    options = ReadOptions(keep_columns={"label": "int64"})
    with pytest.raises(InputError, match=r"'label' is string in .* and int64 in the input's first"):
        list(read_samples(only_shard(path), None, options))
    as_text = ReadOptions(keep_columns={"label": "string", "other": "int64"})
    (sample,) = read_samples(only_shard(path), None, as_text)
    assert json.loads(sample.fields) == {"label": "cat", "other": None}


def test_rows_keep_their_order_across_row_groups(tmp_path: Path) -> None:
    images = [str(i).encode() for i in range(100)]
    path = write_parquet(tmp_path / "p.parquet", {"image": images}, row_group_size=7)
    assert [content for _, content in contents_of(path)] == images
    assert [key for key, _ in contents_of(path)] == [f"{i:08d}" for i in range(100)]


@pytest.mark.parametrize("cut", [10, 500, -4])
def test_truncated_file_fails(tmp_path: Path, cut: int) -> None:
    path = write_parquet(tmp_path / "p.parquet", {"image": [b"1" * 1000]})
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(StorageError, match=r"p\.parquet' is damaged after 0 samples"):
        samples_of(path)


def test_damaged_page_fails_after_earlier_rows(tmp_path: Path) -> None:
    images = [bytes([i]) * 50_000 for i in range(64)]
    path = write_parquet(tmp_path / "p.parquet", {"image": images}, row_group_size=16)
    place = pq.read_metadata(path).row_group(2).column(0).data_page_offset
    content = bytearray(path.read_bytes())
    content[place : place + 40] = b"\xff" * 40
    path.write_bytes(content)
    count = 0
    with pytest.raises(StorageError, match=r"p\.parquet"):  # noqa: PT012 - counts on the way
        for _ in read_samples(only_shard(path)):
            count += 1
    assert count == 32
