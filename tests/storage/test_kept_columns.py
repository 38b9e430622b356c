"""Promises of the fields that are copied with an image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.storage import LeftOut, ReadOptions, kept_types, read_samples
from pipeline.storage.kept_columns import (
    MAX_FIELD_BYTES,
    arrow_type,
    cell_value,
    kept_array,
    to_type,
    type_name,
)
from tests.storage.archives import only_shard, write_tar

DESCRIBED = b'{"caption": "a cat", "tags": ["x", 1], "from": {"site": "s"}, "cls": "by json"}'


def fields_of(path: Path, *names: str, image_field: str = "one") -> list[dict[str, Any]]:
    shard = only_shard(path)
    options = ReadOptions(image_field=image_field, keep_columns=kept_types(shard, names))
    return [json.loads(sample.fields) for sample in read_samples(shard, None, options)]


@pytest.mark.parametrize("image_field", ["one", "all", "jpg"])
@pytest.mark.parametrize("order", [1, -1])
def test_sidecars_are_fields_in_any_order(tmp_path: Path, image_field: str, order: int) -> None:
    members = [("0.jpg", b"1"), ("0.json", DESCRIBED), ("0.cls", b"7\n"), ("1.jpg", b"2")]
    path = write_tar(tmp_path / "s.tar", members[::order])
    names = ("caption", "tags", "from.site", "cls", "json.cls", "txt")
    rows = fields_of(path, *names, image_field=image_field)[::order]
    assert rows == [
        dict(zip(names, ["a cat", '["x", 1]', "s", "7", "by json", None], strict=True)),
        dict.fromkeys(names),
    ]


def test_photos_with_dots_keep_their_own_sidecars(tmp_path: Path) -> None:
    members = [
        *[("J.K.R.jpg", b"1"), ("J.K.R.txt", b"first"), ("J.R.T.jpg", b"2")],
        *[("J.R.T.txt", b"second"), ("J.jpg", b"3")],
    ]
    rows = fields_of(write_tar(tmp_path / "s.tar", members), "txt", image_field="all")
    assert [row["txt"] for row in rows] == ["first", "second", None]


def test_kept_sidecars_are_not_counted_as_left_out(tmp_path: Path) -> None:
    members = [("0.jpg", b"1"), ("0.txt", b"x"), ("0.npy", b"x"), ("1.jpg", b"1")]
    shard, left_out = only_shard(write_tar(tmp_path / "s.tar", members)), LeftOut()
    options = ReadOptions(keep_columns={"txt": "string"})
    assert len(list(read_samples(shard, None, options, left_out))) == 2
    assert left_out == {".npy": 1, "(no txt)": 1}


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff", b"[" * 100_000, b"null"])
def test_invalid_json_sidecar_has_no_fields(tmp_path: Path, content: bytes) -> None:
    path = write_tar(tmp_path / "s.tar", [("0.jpg", b"1"), ("0.json", content)])
    assert fields_of(path, "caption") == [{"caption": None}]


def test_too_long_field_is_missing(tmp_path: Path) -> None:
    for length, kept in ((MAX_FIELD_BYTES, True), (MAX_FIELD_BYTES + 1, False)):
        path = write_tar(tmp_path / "s.tar", [("0.jpg", b"1"), ("0.txt", b"x" * length)])
        assert (fields_of(path, "txt")[0]["txt"] is not None) is kept


def test_text_not_in_unicode_is_escaped(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", [("0.jpg", b"1"), ("0.json", b'{"a": "\\ud800"}')])
    assert fields_of(path, "a") == [{"a": "\\ud800"}]


def test_type_names_can_be_read_back() -> None:
    kinds = [
        *[pa.bool_(), pa.int8(), pa.uint64(), pa.float32(), pa.float64(), pa.string()],
        *[pa.date32(), pa.timestamp("ns"), pa.timestamp("us", "Europe/Paris")],
    ]
    for kind in kinds:
        assert arrow_type(type_name(kind) or "") == kind
    for bad in ("binary", "list<item: int64>", "timestamp[us", ""):
        with pytest.raises(ValueError, match="is not the type of a kept column"):
            arrow_type(bad)


def test_timestamps_keep_their_nanoseconds() -> None:
    kind = pa.timestamp("ns", "UTC")
    cells = pa.array([1_700_000_000_123_456_789, -(2**63) + 1, None], kind)
    values = [cell_value(cell, str(kind)) for cell in cells]
    assert kept_array(json.loads(json.dumps(values)), kind) == cells


@pytest.mark.parametrize("odd", ["cat", [1, 2], {"a": 1}, 1.5, 2**70])
def test_value_of_another_type_is_missing(odd: object) -> None:
    assert to_type(3, "int64") == 3
    assert to_type("3", "string") == "3"
    assert to_type(odd, "int64") is None
