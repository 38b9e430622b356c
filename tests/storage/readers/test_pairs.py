from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from pipeline.errors import InputError, StorageError
from pipeline.storage import Store
from pipeline.storage.readers.pairs import code_members, pair_members
from tests.conftest import Bucket
from tests.storage import cut_off
from tests.storage.archives import write_tar


def packed(code: Any) -> bytes:
    sink = io.BytesIO()
    np.save(sink, code)
    return sink.getvalue()


CODE = packed(np.arange(512, dtype=np.float16))


def test_pair_names_may_have_folders_and_dots(tmp_path: Path) -> None:
    members = [
        *(("./0001.w.npy", CODE), ("./0001.jpg", b"first")),
        *(("a/v1.2.png", b"second"), ("./a/._v1.2.w.npy", b"of macOS"), ("a/v1.2.w.npy", CODE)),
        ("0001.json", b"{}"),
    ]
    pairs = list(pair_members(str(write_tar(tmp_path / "p.tar", members))))
    assert [(pair.key, pair.image) for pair in pairs] == [("0001", b"first"), ("a/v1.2", b"second")]
    assert pairs[0].code.dtype == np.float32
    assert pairs[0].code.tolist() == list(range(512))


def test_codes_are_read_with_images_or_without(tmp_path: Path) -> None:
    members = [("0.jpg", b"image"), ("./a/0.w.npy", CODE), ("1.w.npy", CODE)]
    codes = list(code_members(str(write_tar(tmp_path / "p.tar", members))))
    assert [key for key, _ in codes] == ["a/0", "1"]
    assert codes[0][1].tolist() == list(range(512))


def test_a_tar_without_codes_is_refused(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "p.tar", [("0.jpg", b"image")])
    with pytest.raises(InputError, match=r"p\.tar' holds no codes"):
        list(code_members(str(path)))


def test_packed_tar_in_a_bucket_is_read(tmp_path: Path, s3: Bucket) -> None:
    path = write_tar(tmp_path / "p.tar.gz", [("0.jpg", b"image"), ("0.w.npy", CODE)], "w:gz")
    Store(s3.uri).put("p.tar.gz", path.read_bytes())
    assert [pair.key for pair in pair_members(f"{s3.uri}/p.tar.gz")] == ["0"]


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([], r"holds no pairs: a pair is <key>\.jpg and <key>\.w\.npy"),
        ([("0.jpg", b"image")], "holds no pairs"),
        ([("0.w.npy", CODE)], "holds no pairs"),
        ([("0.jpg", b""), ("0.w.npy", CODE), ("1.jpg", b"")], r"'1' in .* has no code \(1 such\)"),
        ([("0.w.npy", CODE), ("0.jpg", b""), ("1.w.npy", CODE)], "'1' in .* has no image"),
        ([("0.w.npy", b"text"), ("0.jpg", b"")], r"p\.tar/0\.w\.npy' is not a numpy array"),
        ([("0.w.npy", CODE[:-9])], "is not a numpy array"),
        ([("0.w.npy", packed(np.zeros(9)))], r"float64 \[9\], not a code"),
        ([("0.w.npy", packed(np.float32(1)))], r"float32 \[\], not a code"),
    ],
)
def test_incomplete_or_invalid_pairs_are_refused(
    tmp_path: Path, members: list[tuple[str, bytes]], said: str
) -> None:
    path = write_tar(tmp_path / "p.tar", members)
    with pytest.raises(InputError, match=said) as error:
        list(pair_members(str(path)))
    assert "p.tar" in str(error.value)


def test_missing_tar_and_failed_read_are_distinguished(tmp_path: Path) -> None:
    for place in (f"{tmp_path}/none.tar", "memory://pairs/none.tar"):
        with pytest.raises(InputError, match=r"there is no '.*none\.tar': pass a tar of pairs"):
            list(pair_members(place))
    cut_off.register()
    path = write_tar(tmp_path / "p.tar", [("0.jpg", b"image"), ("0.w.npy", CODE)])
    with fsspec.open("memory://pairs/cut.tar", "wb") as sink:
        sink.write(path.read_bytes())
    with pytest.raises(StorageError, match="reset by peer"):
        list(pair_members("breaks://pairs/cut.tar"))


@pytest.mark.parametrize("content", [b"", b"no tar at all" * 100])
def test_damaged_tar_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "p.tar").write_bytes(content)
    with pytest.raises(InputError, match=r"p\.tar' is no tar, or damaged: .*; replace it"):
        list(pair_members(str(tmp_path / "p.tar")))
