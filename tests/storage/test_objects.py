"""Promises of the metadata of stored objects."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.storage import Store
from tests.conftest import Bucket


def test_listed_infos_equal_the_info_of_each_object(store: Store) -> None:
    assert list(store.infos()) == []
    for name in ("x/1", "x/y/2", "x-3", "x/.1.ab.tmp"):
        store.put(name, name.encode())
    listed = dict(store.infos("x/"))
    assert listed == {name: store.info(name) for name in ("x/1", "x/y/2")}
    assert all(info.modified > 1e9 for info in listed.values())
    assert store.names() == ["x-3", "x/1", "x/y/2"]
    assert [name for name, _ in store.infos("x/y")] == ["x/y/2"]
    assert list(store.infos("y/")) == []


def test_other_storages_are_listed_too(tmp_path: Path) -> None:
    store = Store(f"memory:/{tmp_path}")
    assert store.names() == []
    for name in ("x/1", "x/y/22", "x-3"):
        store.put(name, name.encode())
    assert {name: info.size for name, info in store.infos("x/")} == {"x/1": 3, "x/y/22": 6}


def test_bucket_listing_reads_every_page(s3: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(s3.uri)
    for number in range(5):
        store.put(f"x/{number}", b"")
    monkeypatch.setitem(store.fs.req_kw, "MaxKeys", 2)
    assert store.names("x/") == [f"x/{number}" for number in range(5)]


def test_missing_bucket_holds_nothing(s3: Bucket) -> None:
    assert Store(f"{s3.uri}-not-there").names("x/") == []


def test_links_are_listed_but_folders_not_followed(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    (tmp_path / "to_file").symlink_to(tmp_path / "folder" / "file")
    assert Store(str(tmp_path)).names() == ["folder/file", "to_file"]
