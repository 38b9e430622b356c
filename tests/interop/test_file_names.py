"""File names stay inside the folder, are unique and convert back to names."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest

from pipeline.interop.file_names import from_file_name, limits_of, to_file_name
from pipeline.storage import Store

PARTS = ("", ".", "..", "a", "%", "%2E", "%25", ".hidden", "%2E%2E", "..x", "ä 日")


@pytest.mark.parametrize("name", ["a", "s-0/a/1.jpg#0", "a b/ä%2E.jpg", "x..", "a.%"])
def test_plain_name_is_its_own_file_name(name: str) -> None:
    assert to_file_name(name) == name


def test_names_stay_inside_and_stay_different() -> None:
    names = [
        "/".join(parts) for count in (1, 2, 3) for parts in itertools.product(PARTS, repeat=count)
    ]
    files = {to_file_name(name): name for name in names}
    assert len(files) == len(names)
    assert {from_file_name(file) for file in files} == set(names)
    for file, name in files.items():
        assert from_file_name(file) == name
        assert os.path.normpath(f"/root/{file}") == f"/root/{file}"
        assert not any(part.startswith(".") for part in file.split("/"))


def test_limits_match_what_the_disk_accepts(tmp_path: Path) -> None:
    limits = limits_of(str(tmp_path))
    longest = ["a" * 251 + ".npy"] * 20
    for length in (255, limits.path):
        path = "/".join(longest)[-length:].lstrip("/")
        assert not limits.why_not(path)
        Store(str(tmp_path / str(length))).put(path[: limits_of(str(tmp_path / "4095")).path], b"x")
    assert "more than 255 bytes between slashes" in limits.why_not("a" * 256)
    assert "more than 255 bytes between slashes" in limits.why_not("a/" + "ä" * 128)
    assert f"{limits.path + 1} bytes" in limits.why_not(
        "a/" * (limits.path // 2) + "aa"[: 1 + limits.path % 2]
    )
    assert "null character" in limits.why_not("a\0b")


def test_bucket_limit_counts_the_whole_key() -> None:
    limits = limits_of("s3://bucket/folder", "9999/")
    assert limits.path == 1024 - len("folder/9999/")
    assert not limits.why_not("a" * limits.path)
    assert limits.why_not("a" * (limits.path + 1))
