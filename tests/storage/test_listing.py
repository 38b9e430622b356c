"""Promises of the walk through a folder, where the store's answers can be chosen."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from s3fs import S3FileSystem

from pipeline.errors import InputError
from pipeline.storage import Store
from pipeline.storage.buckets import get_objects
from pipeline.storage.listing import walk


class Keys:
    """A bucket of which the keys are known; the server of the tests takes none with `//`."""

    protocol = S3FileSystem.protocol
    split_path = S3FileSystem(anon=True, skip_instance_cache=True).split_path

    def __init__(self, *keys: str, page: int = 1000) -> None:
        self.keys = keys
        self.req_kw = {"MaxKeys": page}

    def order(self, name: str) -> str:
        """What S3 sorts by: the bytes of the key."""
        return name

    def call_s3(self, method: str, **asked: Any) -> dict[str, Any]:
        """A page of keys and common prefixes."""
        assert (method, asked["Bucket"], asked["Delimiter"]) == ("list_objects_v2", "bucket", "/")
        start = asked["Prefix"]
        rests = [key[len(start) :] for key in self.keys if key.startswith(start)]
        found = {head + slash for head, slash, _ in (rest.partition("/") for rest in rests)}
        begin = int(asked.get("ContinuationToken", 0))
        end = begin + asked["MaxKeys"]
        page = [start + name for name in sorted(found, key=self.order)[begin:end]]
        return {
            "Contents": [{"Key": key, "Size": 1} for key in page if key == start or key[-1] != "/"],
            "CommonPrefixes": [{"Prefix": key} for key in page if key != start and key[-1] == "/"],
            "IsTruncated": end < len(found),
            "NextContinuationToken": str(end),
        }


def names(bucket: Keys, folder: str = "bucket/in") -> list[str]:
    return [entry.name for entry in walk(bucket, folder, f"s3://{folder}")]


def test_a_key_with_an_empty_component_is_read_by_its_whole_name() -> None:
    keys = Keys("in/b.jpg", "in//b.jpg", "in//in/b.jpg", "in///", "in///b.jpg", "in/a//c/1.jpg")
    found = names(keys)
    assert found == ["//b.jpg", "/b.jpg", "/in/b.jpg", "a//c/1.jpg", "b.jpg"]
    assert names(Keys("/b.jpg", "b.jpg", "//a.jpg"), "bucket") == ["//a.jpg", "/b.jpg", "b.jpg"]


def test_the_key_that_is_asked_for_has_its_empty_components(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Body(SimpleNamespace):
        async def __aenter__(self) -> Body:
            return self

        async def __aexit__(self, *_: object) -> None:
            return None

        async def read(self) -> bytes:
            return bytes(self.key.encode())

    async def call(method: str, Bucket: str, Key: str) -> dict[str, Any]:  # noqa: N803
        assert (method, Bucket) == ("get_object", "bucket")
        return {"Body": Body(key=Key)}

    fs = S3FileSystem(anon=True, skip_instance_cache=True)
    monkeypatch.setattr(fs, "_call_s3", call)
    assert get_objects(fs, "bucket/in", ["/b.jpg", "a//c.jpg"]) == [b"in//b.jpg", b"in/a//c.jpg"]
    assert get_objects(fs, "bucket", ["/b.jpg"]) == [b"/b.jpg"]


def test_folder_markers_are_no_files() -> None:
    assert names(Keys("in/", "in/a/", "in/a/1.jpg", "in/b/")) == ["a/1.jpg"]


def test_another_store_s_folder_without_a_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store("memory://nameless")
    details = [{"name": "/nameless", "type": "directory", "size": 0}]
    monkeypatch.setattr(type(store.fs), "ls", lambda *_, **__: details)
    with pytest.raises(InputError, match="'/nameless//' is a folder without a name"):
        list(walk(store.fs, "/nameless", store.root))
