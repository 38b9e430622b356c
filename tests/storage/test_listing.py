"""Promises of listing a folder, with a simulated storage."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
from s3fs import S3FileSystem

from pipeline.errors import InputError, StorageError
from pipeline.storage import Store
from pipeline.storage.listing import walk
from pipeline.storage.s3 import Fetched, get_objects


class Keys:
    """Simulated bucket with given keys: the tests' S3 server accepts no keys with `//`."""

    protocol = S3FileSystem.protocol
    split_path = S3FileSystem(anon=True, skip_instance_cache=True).split_path

    def __init__(self, *keys: str, page: int = 1000) -> None:
        self.keys = keys
        self.req_kw = {"MaxKeys": page}
        self.requests = 0

    def in_order(self, children: set[str]) -> list[str]:
        """Sort as S3 does, by the bytes of the key."""
        return sorted(children)

    def call_s3(self, method: str, **request: Any) -> dict[str, Any]:
        """Return a page of keys and common prefixes."""
        assert (method, request["Bucket"], request["Delimiter"]) == (
            "list_objects_v2",
            "bucket",
            "/",
        )
        start = request["Prefix"]
        rests = [key[len(start) :] for key in self.keys if key.startswith(start)]
        children = {head + slash for head, slash, _ in (rest.partition("/") for rest in rests)}
        self.requests += 1
        begin = int(request.get("ContinuationToken", 0))
        end = begin + request["MaxKeys"]
        page = [start + name for name in self.in_order(children)[begin:end]]
        return {
            "Contents": [{"Key": key, "Size": 1} for key in page if key == start or key[-1] != "/"],
            "CommonPrefixes": [{"Prefix": key} for key in page if key != start and key[-1] == "/"],
            "IsTruncated": end < len(children),
            "NextContinuationToken": str(end),
        }


class ByComponent(Keys):
    """Bucket that sorts folders by their names without the slash, as the tests' S3 server does."""

    def in_order(self, children: set[str]) -> list[str]:
        return sorted(children, key=lambda name: (name.removesuffix("/"), name))


class InNoOrder(Keys):
    """Bucket without any order, as S3's directory buckets may list."""

    def in_order(self, children: set[str]) -> list[str]:
        return random.Random(0).sample(sorted(children), len(children))


def names(bucket: Keys, folder: str = "bucket/in") -> list[str]:
    return [entry.name for entry in walk(bucket, folder, f"s3://{folder}")]


def test_empty_components_of_keys_are_listed() -> None:
    keys = Keys("in/b.jpg", "in//b.jpg", "in//in/b.jpg", "in///", "in///b.jpg", "in/a//c/1.jpg")
    listed = names(keys)
    assert listed == ["//b.jpg", "/b.jpg", "/in/b.jpg", "a//c/1.jpg", "b.jpg"]
    assert names(Keys("/b.jpg", "b.jpg", "//a.jpg"), "bucket") == ["//a.jpg", "/b.jpg", "b.jpg"]


def contents_of(fs: S3FileSystem, folder: str, *files: str) -> list[bytes]:
    return [
        result.content for result in get_objects(fs, folder, files) if isinstance(result, Fetched)
    ]


def test_requested_keys_keep_their_empty_components(
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
    assert contents_of(fs, "bucket/in", "/b.jpg", "a//c.jpg") == [b"in//b.jpg", b"in/a//c.jpg"]
    assert contents_of(fs, "bucket", "/b.jpg") == [b"/b.jpg"]


@pytest.mark.parametrize("server", [Keys, ByComponent])
@pytest.mark.parametrize("page", [1, 2, 3, 1000])
def test_files_come_in_path_order_from_any_server(server: type[Keys], page: int) -> None:
    components = ["a", "a-", "a-b", "a.b", "a b", "a0", "ab", "b", "é", "\U0001f600", "\uffee", ""]
    random_ = random.Random(page)
    for _ in range(50):
        paths = ["/".join(random_.choices(components, k=random_.randint(1, 3))) for _ in range(40)]
        files = {path for path in paths if not path.endswith("/") and path}
        listed = names(server(*(f"in/{path}" for path in files), page=page))
        assert listed == sorted(listed)
        assert set(listed) == files


def test_unordered_server_is_listed_to_its_end_first() -> None:
    files = [f"{number:02d}.jpg" for number in range(50)]
    assert names(InNoOrder(*(f"in/{name}" for name in files), page=10)) == files


def test_first_files_come_before_the_last_page() -> None:
    bucket = Keys(*(f"in/{number:03d}.jpg" for number in range(100)), page=10)
    entries = walk(bucket, "bucket/in", "s3://bucket/in")
    assert next(entries).name == "000.jpg"
    assert bucket.requests == 2
    assert [entry.name for entry in entries] == [f"{number:03d}.jpg" for number in range(1, 100)]


def test_order_lost_on_later_pages_is_an_error() -> None:
    class Late(Keys):
        def in_order(self, children: set[str]) -> list[str]:
            return [*sorted(children)[1:], *sorted(children)[:1]]

    with pytest.raises(StorageError, match="'s3://bucket/in' is not listed in a consistent"):
        names(Late(*(f"in/{number}.jpg" for number in range(10)), page=2))


def test_folder_markers_are_not_files() -> None:
    assert names(Keys("in/", "in/a/", "in/a/1.jpg", "in/b/")) == ["a/1.jpg"]


def test_folder_with_an_empty_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store("memory://nameless")
    details = [{"name": "/nameless", "type": "directory", "size": 0}]
    monkeypatch.setattr(type(store.fs), "ls", lambda *_, **__: details)
    with pytest.raises(InputError, match="'/nameless//' is a folder with an empty name"):
        list(walk(store.fs, "/nameless", store.root))
