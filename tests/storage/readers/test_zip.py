"""Promises of reading zip shards."""

from __future__ import annotations

import json
import struct
import zipfile
import zlib
from pathlib import Path
from random import Random
from typing import Any

import pytest

from pipeline.errors import InputError, StorageError
from pipeline.storage import LeftOut, ReadOptions, Store, count_samples, kept_types, read_samples
from pipeline.storage.readers import zip as zip_reader
from pipeline.storage.readers import zip_entries
from tests.conftest import Bucket
from tests.storage.archives import only_shard, samples_of

NOISE = Random(0).randbytes(3000)
MEMBERS = {"00000/img00000000.png": b"0" * 3000, "00000/img00000001.png": NOISE}


def write_zip(
    path: Path, members: dict[str, bytes], packing: int = zipfile.ZIP_DEFLATED, **options: Any
) -> Path:
    with zipfile.ZipFile(path, "w", packing, **options) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def contents_of(path: Path) -> dict[str, bytes]:
    return {sample.key: sample.content for sample in samples_of(path)}


def labels(document: object) -> dict[str, bytes]:
    return {**MEMBERS, "dataset.json": json.dumps(document).encode()}


@pytest.mark.parametrize("packing", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_stored_and_deflated_images_are_read(tmp_path: Path, packing: int) -> None:
    path = write_zip(tmp_path / "dataset.zip", {"a/": b"", **MEMBERS, "0.txt": b"x"}, packing)
    left_out = LeftOut()
    samples = list(read_samples(only_shard(path), None, ReadOptions(), left_out))
    assert [(sample.key, sample.content) for sample in samples] == [
        ("00000/img00000000", b"0" * 3000),
        ("00000/img00000001", NOISE),
    ]
    assert samples[0].uri == f"{path}/00000/img00000000.png"
    assert left_out == {".txt": 1}
    assert count_samples(only_shard(path)) == 2


def test_zip64_archives_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 1000)
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 2)
    path = write_zip(tmp_path / "s.zip", {f"{n}.png": NOISE + bytes([n]) for n in range(5)})
    assert b"PK\6\6" in path.read_bytes()
    assert list(contents_of(path).values()) == [NOISE + bytes([n]) for n in range(5)]


def test_directory_longer_than_a_piece_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zip_entries, "_PIECE", 300)
    path = write_zip(tmp_path / "s.zip", {f"{n:03d}.png": NOISE for n in range(300)})
    assert len(contents_of(path)) == 300


def test_program_before_an_archive_is_skipped(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "s.zip", MEMBERS)
    path.write_bytes(b"#!/bin/sh\nexec unzip $0\n" + path.read_bytes())
    assert list(contents_of(path).values()) == list(MEMBERS.values())


def test_names_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "s.zip"
    write_zip(path, {"ä.png": b"1", "日/0.png": b"2", "../up.png": b"3", "/etc/abs.png": b"4"})
    content = path.read_bytes().replace("ä.png".encode(), b"\xff8.png")
    path.write_bytes(content)
    assert sorted(contents_of(path)) == ["../up", "/etc/abs", "\\xff8", "日/0"]
    assert [item.name for item in tmp_path.rglob("*")] == ["s.zip"]


def test_backslashes_of_windows_become_slashes(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "s.zip", {"a_b.png": b"1"})
    path.write_bytes(path.read_bytes().replace(b"a_b.png", rb"a\b.png"))
    assert list(contents_of(path)) == ["a/b"]


def flagged(path: Path, name: bytes, at: int, value: int) -> None:
    """Set the 16-bit number at `at` in the central directory's entry `name`."""
    content = bytearray(path.read_bytes())
    place = content.rindex(name) - 46 + at
    struct.pack_into("<H", content, place, value)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("at", "value", "reason", "detail"),
    [
        (8, 1, "unsupported_format", "encrypted inside the zip"),
        (10, 9, "unsupported_format", "packed inside the zip by Deflate64"),
        (10, 77, "unsupported_format", "by method 77"),
        (16, 1, "undecodable", "its checksum does not fit"),
        (22, 1, "undecodable", "reaches beyond the archive's end"),
        (24, 1000, "undecodable", "damaged inside the zip: more of 1000 bytes"),
        (24, 4000, "undecodable", "damaged inside the zip: 3000 of 4000 bytes"),
        (42, 7, "undecodable", "no entry where it should begin"),
        (40, 0xA000, "unsupported_format", "a link, which is not followed"),
    ],
)
def test_unreadable_entry_is_one_reject(
    tmp_path: Path, at: int, value: int, reason: str, detail: str
) -> None:
    path = write_zip(tmp_path / "s.zip", MEMBERS)
    flagged(path, b"00000/img00000000.png", at, value)
    bad, good = samples_of(path)
    assert (bad.key, bad.content, bad.reject) == ("00000/img00000000", b"", reason)
    assert detail in bad.detail
    assert good.content == NOISE


def test_damaged_packed_bytes_are_one_reject(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "s.zip", MEMBERS)
    content = bytearray(path.read_bytes())
    start = content.index(b".png") + 4
    content[start : start + 4] = b"\xff" * 4
    path.write_bytes(content)
    bad, good = samples_of(path)
    assert (bad.reject, good.content) == ("undecodable", NOISE)
    assert bad.detail.startswith("damaged inside the zip: ")


@pytest.mark.parametrize("cut", [0, 10, 3000, -5, -30])
def test_truncated_zip_fails(tmp_path: Path, cut: int) -> None:
    path = write_zip(tmp_path / "s.zip", MEMBERS)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(StorageError, match=r"s\.zip' is damaged after 0 samples.*no end-of-arch"):
        samples_of(path)


def test_damaged_directory_fails_after_earlier_entries(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "s.zip", MEMBERS)
    content = bytearray(path.read_bytes())
    content[content.rindex(b"PK\1\2")] ^= 1
    path.write_bytes(content)
    with pytest.raises(StorageError, match="is damaged after 1 samples"):
        samples_of(path)
    assert count_samples(only_shard(path)) == 1


def test_missing_directory_entries_are_damage(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "s.zip", MEMBERS)
    content = bytearray(path.read_bytes())
    struct.pack_into("<2H", content, len(content) - 22 + 8, 3, 3)
    path.write_bytes(content)
    with pytest.raises(StorageError, match=r"after 2 samples \(its directory has 2 of 3 entries"):
        samples_of(path)


def test_too_large_entry_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.storage.readers.archive_members.MAX_SAMPLE_BYTES", 2999)
    first, second = samples_of(write_zip(tmp_path / "s.zip", MEMBERS))
    assert (first.reject, second.reject) == ("too_large", "too_large")


def test_entry_larger_than_its_claim_is_a_reject(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_zip(tmp_path / "s.zip", {"00000/img00000000.png": b"0" * (64 << 20)})
    flagged(path, b"00000/img00000000.png", 24, 100)
    flagged(path, b"00000/img00000000.png", 26, 0)
    unpacked = 0

    class Counted:
        def __init__(self, bits: int) -> None:
            self.inner = zlib.decompressobj(bits)

        def decompress(self, content: bytes, most: int) -> bytes:
            nonlocal unpacked
            block = self.inner.decompress(content, most)
            unpacked += len(block)
            return block

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

    monkeypatch.setattr(zip_entries, "_inflater", Counted)
    (bad,) = samples_of(path)
    assert (bad.reject, unpacked) == ("undecodable", 101)


def test_bomb_of_overlapping_entries_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each entry is valid, but 300 of them share the same bytes."""
    monkeypatch.setattr(zip_reader, "_BOMB_BYTES", 1 << 20)
    path = write_zip(tmp_path / "s.zip", {"0.png": b"0" * (1 << 20)})
    content = path.read_bytes()
    start = content.rindex(b"PK\1\2")
    entry, count = content[start : content.rindex(b"PK\5\6")], 300
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, count * len(entry), start, 0)
    path.write_bytes(content[:start] + entry * count + end)
    with pytest.raises(StorageError, match="unpacks to over 200 times its size"):
        samples_of(path)


@pytest.mark.parametrize(
    ("given", "kind", "kept"),
    [
        ([3, 7], "int64", [3, 7]),
        ([[0.5, 1], [1, 0]], "string", ["[0.5, 1]", "[1, 0]"]),
        ([3, "x"], "string", ["3", "x"]),
        ([3, None], "string", ["3", None]),
    ],
)
def test_stylegan_labels_are_kept_with_their_images(
    tmp_path: Path, given: list[Any], kind: str, kept: list[Any]
) -> None:
    document = {"labels": list(zip(MEMBERS, given, strict=True))}
    shard = only_shard(write_zip(tmp_path / "dataset.zip", labels(document)))
    types = kept_types(shard, ["label"])
    assert types == {"label": kind}
    samples = read_samples(shard, None, ReadOptions(keep_columns=types))
    assert [json.loads(sample.fields)["label"] for sample in samples] == kept


@pytest.mark.parametrize("document", [{}, {"labels": None}, [], None])
def test_dataset_without_labels_is_refused_early(tmp_path: Path, document: object) -> None:
    members = MEMBERS if document is None else labels(document)
    shard = only_shard(write_zip(tmp_path / "dataset.zip", members))
    with pytest.raises(InputError, match=r"--keep-columns: .* has no labels"):
        kept_types(shard, ["label"])
    samples = list(read_samples(shard, None, ReadOptions(keep_columns={"label": "int64"})))
    assert [sample.fields for sample in samples] == ['{"label": null}'] * 2


@pytest.mark.parametrize("odd", [[1, 2], "cat", {}, None])
def test_invalid_label_is_null_and_counted(tmp_path: Path, odd: object) -> None:
    first, second = MEMBERS
    pair = [second] if odd is None else [second, odd]
    document = {"labels": [[first, 1], pair, 5, "ab", []]}
    shard = only_shard(write_zip(tmp_path / "s.zip", labels(document)))
    if odd is None:
        assert kept_types(shard, ["label"]) == {"label": "int64"}
    left_out = LeftOut()
    options = ReadOptions(keep_columns={"label": "int64"})
    samples = list(read_samples(shard, None, options, left_out))
    assert [json.loads(sample.fields)["label"] for sample in samples] == [1, None]
    assert left_out["(no label)"] == 1


@pytest.mark.parametrize("content", [b"{", b'{"labels": [1, 2]}', b'{"labels": 5}', b"[" * 100_000])
def test_unreadable_labels_give_one_clear_error(tmp_path: Path, content: bytes) -> None:
    shard = only_shard(write_zip(tmp_path / "s.zip", {**MEMBERS, "dataset.json": content}))
    with pytest.raises(StorageError, match=r"'dataset\.json' in .* cannot be read"):
        kept_types(shard, ["label"])
    assert len(list(read_samples(shard))) == 2, "labels are not read if they are not kept"


def test_zip_in_a_bucket_is_read_by_ranges(s3: Bucket, tmp_path: Path) -> None:
    path = write_zip(tmp_path / "s.zip", labels({"labels": [[name, 1] for name in MEMBERS]}))
    Store(s3.uri).put("in/s.zip", path.read_bytes())
    shard = only_shard(f"{s3.uri}/in")
    samples = list(read_samples(shard, None, ReadOptions(keep_columns={"label": "int64"})))
    assert [sample.content for sample in samples] == list(MEMBERS.values())
    assert {sample.fields for sample in samples} == {'{"label": 1}'}
    assert count_samples(shard) == 2


def test_empty_archive_has_no_samples(tmp_path: Path) -> None:
    assert contents_of(write_zip(tmp_path / "s.zip", {})) == {}
