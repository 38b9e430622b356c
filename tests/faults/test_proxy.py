"""Requests that rules select are broken, and no others."""

from __future__ import annotations

import threading

import aiohttp
import pytest
import s3fs
from botocore.exceptions import BotoCoreError

from pipeline.errors import StorageError
from pipeline.storage import Store
from pipeline.storage.retries import storage_retries
from pipeline.storage.s3_filesystem import KeyedS3
from tests.conftest import Bucket
from tests.faults import actions
from tests.faults.proxy import FaultProxy, Rule

BROKEN = (OSError, BotoCoreError, aiohttp.ClientError)


@pytest.fixture
def client(proxy: FaultProxy) -> s3fs.S3FileSystem:
    """Return a client that uses the proxy and never retries."""
    fs = s3fs.S3FileSystem(
        endpoint_url=proxy.url,
        config_kwargs={"retries": {"total_max_attempts": 1}},
        use_listings_cache=False,
        skip_instance_cache=True,
    )
    fs.retries = 1
    return fs


def test_unmatched_requests_pass_unchanged(s3: Bucket, client: s3fs.S3FileSystem) -> None:
    content = bytes(range(256)) * 5000
    client.pipe_file(f"{s3.uri}/a b+c/ü", content)
    assert client.cat_file(f"{s3.uri}/a b+c/ü") == content
    assert client.find(s3.uri) == [f"{s3.uri.removeprefix('s3://')}/a b+c/ü"]


def test_a_rule_selects_only_its_nth_request(
    s3: Bucket, proxy: FaultProxy, client: s3fs.S3FileSystem
) -> None:
    with proxy.breaking(Rule("PUT", "latents/", actions.error(503), skip=1)):
        client.pipe_file(f"{s3.uri}/rejects/0", b"0")
        client.pipe_file(f"{s3.uri}/latents/0", b"0")
        with pytest.raises(OSError, match="on purpose"):
            client.pipe_file(f"{s3.uri}/latents/1", b"1")
        client.pipe_file(f"{s3.uri}/latents/2", b"2")
    assert len(client.find(s3.uri)) == 3


def test_repeated_requests_are_counted(
    s3: Bucket, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    KeyedS3.clear_instance_cache()  # it caches clients of the server itself
    store, before = Store(s3.uri), storage_retries()
    for action in (actions.error(503), actions.error(500)):
        with proxy.breaking(Rule("PUT", "latents/", action)):
            store.put("latents/0", b"0")
    assert storage_retries() == before + 2
    with pytest.raises(StorageError):
        store.get("latents/1")
    assert storage_retries() == before + 2, "what is not there is asked for once"
    KeyedS3.clear_instance_cache()


def test_resets_strike_before_or_after_the_write(
    s3: Bucket, proxy: FaultProxy, client: s3fs.S3FileSystem
) -> None:
    for name, action in (("before", actions.reset_before), ("after", actions.reset_after)):
        with proxy.breaking(Rule("PUT", name, action, times=9)), pytest.raises(BROKEN):
            client.pipe_file(f"{s3.uri}/{name}", b"content")
    assert [path.rpartition("/")[2] for path in client.find(s3.uri)] == ["after"]


def test_a_truncated_answer_is_an_error(
    s3: Bucket, proxy: FaultProxy, client: s3fs.S3FileSystem
) -> None:
    client.pipe_file(f"{s3.uri}/object", b"content" * 100)
    with (
        proxy.breaking(Rule("GET", "object", actions.truncated)),
        pytest.raises(BROKEN),
    ):
        client.cat_file(f"{s3.uri}/object")


def test_a_delayed_put_arrives_when_released(
    s3: Bucket, proxy: FaultProxy, client: s3fs.S3FileSystem
) -> None:
    release, arrived = threading.Event(), threading.Event()
    with proxy.breaking(Rule("PUT", "late", actions.hold(release, arrived))):
        put = threading.Thread(target=client.pipe_file, args=(f"{s3.uri}/late", b"content"))
        put.start()
        assert client.find(s3.uri) == []
        release.set()
        assert arrived.wait(30)
        put.join()
    assert client.cat_file(f"{s3.uri}/late") == b"content"


def test_a_store_without_conditions_overwrites_objects(
    s3: Bucket, proxy: FaultProxy, client: s3fs.S3FileSystem
) -> None:
    client.pipe_file(f"{s3.uri}/object", b"first", mode="create")
    with pytest.raises(OSError, match="pre-conditions"):
        client.pipe_file(f"{s3.uri}/object", b"second", mode="create")
    direct = s3fs.S3FileSystem(use_listings_cache=False)
    with proxy.breaking(Rule("PUT", "object", actions.unconditional(direct.pipe_file))):
        client.pipe_file(f"{s3.uri}/object", b"third", mode="create")
    assert client.cat_file(f"{s3.uri}/object") == b"third"


def test_a_listing_can_omit_new_objects(
    s3: Bucket, proxy: FaultProxy, client: s3fs.S3FileSystem
) -> None:
    for name in ("latents/0", "latents/1", "rejects/0"):
        client.pipe_file(f"{s3.uri}/{name}", b"content")
    with proxy.breaking(Rule("GET", "list-type=2", actions.without_entries("latents/1"))):
        assert len(client.find(s3.uri)) == 2
    assert len(client.find(s3.uri)) == 3
