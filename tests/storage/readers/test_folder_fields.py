"""Promises of the fields in sidecars and metadata files of a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import InputError
from pipeline.storage import LeftOut, ReadOptions, Store, kept_columns, list_shards, read_samples
from tests.conftest import Bucket

FILES = {
    "a.jpg": b"1",
    "a.txt": b"a cat\n",
    "a.json": b'{"score": 0.5, "from": {"site": "x"}, "txt": "other"}',
    "b/c.d.png": b"2",
    "b/c.d.txt": b"a dog",
    "e.jpg": b"3",
}
OPTIONS = ReadOptions(keep_columns=dict.fromkeys(("txt", "score", "from.site"), "string"))
EXPECTED: dict[str, Any] = {
    "a.jpg": {"txt": "a cat", "score": "0.5", "from.site": "x"},
    "b/c.d.png": {"txt": "a dog", "score": None, "from.site": None},
    "e.jpg": {"txt": None, "score": None, "from.site": None},
}


def fields_of(uri: str, left_out: LeftOut | None = None) -> dict[str, Any]:
    (shard,) = list_shards(uri)
    samples = read_samples(shard, None, OPTIONS, left_out)
    return {sample.key: json.loads(sample.fields) for sample in samples}


def test_files_of_the_same_stem_are_fields(tmp_path: Path) -> None:
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    left_out = LeftOut()
    assert fields_of(str(tmp_path), left_out) == EXPECTED
    assert left_out["(no txt)"] == 1


def test_fields_in_a_bucket_are_the_same(s3: Bucket) -> None:
    for name, content in FILES.items():
        Store(s3.uri).put(f"in/{name}", content)
    assert fields_of(f"{s3.uri}/in") == EXPECTED


@pytest.mark.parametrize("content", [b"x" * 100, b"\xff\xfe", b""])
def test_long_or_undecodable_text_is_missing(
    tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.storage.readers.folder_fields.MAX_FIELD_BYTES", 99)
    (tmp_path / "a.jpg").write_bytes(b"1")
    (tmp_path / "a.txt").write_bytes(content)
    (tmp_path / "a.json").write_bytes(content)
    assert fields_of(str(tmp_path))["a.jpg"]["txt"] in (None, "")
    assert kept_columns.MAX_FIELD_BYTES == 1 << 20


METADATA = {
    "metadata.csv": b'file_name,txt,score\nx.jpg,,1\n"a/y, z.jpg","of, the top",2\n',
    "a/metadata.jsonl": b'{"file_name": "y, z.jpg", "txt": null, "from": {"site": "near"}}\n#',
    "x.jpg": b"1",
    "x.txt": b"its own",
    "a/y, z.jpg": b"2",
    "a/b/w.jpg": b"3",
}
BY_ROWS: dict[str, Any] = {
    "x.jpg": {"txt": "its own", "score": "1", "from.site": None},
    "a/y, z.jpg": {"txt": None, "score": None, "from.site": "near"},
    "a/b/w.jpg": {"txt": None, "score": None, "from.site": None},
}


def test_fields_come_from_the_nearest_metadata_file(tmp_path: Path, s3: Bucket) -> None:
    for name, content in METADATA.items():
        for root in (str(tmp_path), f"{s3.uri}/in"):
            Store(root).put(name, content)
    assert fields_of(str(tmp_path)) == fields_of(f"{s3.uri}/in") == BY_ROWS
    (tmp_path / "metadata.csv").write_bytes(b"file_name,score\nx.jpg,5\n")
    assert fields_of(str(tmp_path))["x.jpg"]["score"] == "5", "a changed file is read again"


def test_too_large_metadata_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.storage.readers.folder_fields.MAX_METADATA_BYTES", 99)
    (tmp_path / "a.jpg").write_bytes(b"1")
    (tmp_path / "metadata.csv").write_bytes(b"x" * 100)
    with pytest.raises(InputError, match="has 100 bytes, of at most 99 that --keep-columns reads"):
        fields_of(str(tmp_path))
