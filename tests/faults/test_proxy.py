"""The proxy breaks what it is told to break, and nothing else."""

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
    """A client that reaches the server through the proxy and repeats nothing."""
    fs = s3fs.S3FileSystem(
        endpoint_url=proxy.url,
        config_kwargs={"retries": {"total_max_attempts": 1}},
        use_listings_cache=False,
        skip_instance_cache=True,
    )
    fs.retries = 1
    return fs


def test_what_no_rule_takes_passes_unchanged(s3: Bucket, client: s3fs.S3FileSystem) -> None:
    content = bytes(range(256)) * 5000
    client.pipe_file(f"{s3.uri}/a b+c/ü", content)
    assert client.cat_file(f"{s3.uri}/a b+c/ü") == content
    assert client.find(s3.uri) == [f"{s3.uri.removeprefix('s3://')}/a b+c/ü"]


def test_a_rule_takes_the_nth_of_its_requests_alone(
    s3: Bucket, proxy: FaultProxy, client: s3fs.S3FileSystem
) -> None:
    with proxy.breaking(Rule("PUT", "latents/", actions.error(503), skip=1)):
        client.pipe_file(f"{s3.uri}/rejects/0", b"0")
        client.pipe_file(f"{s3.uri}/latents/0", b"0")
        with pytest.raises(OSError, match="on purpose"):
            client.pipe_file(f"{s3.uri}/latents/1", b"1")
        client.pipe_file(f"{s3.uri}/latents/2", b"2")
    assert len(client.find(s3.uri)) == 3


def test_requests_that_are_repeated_are_counted(
    s3: Bucket, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    KeyedS3.clear_instance_cache()  # which holds clients of the server itself
    store, before = Store(s3.uri), storage_retries()
    for action in (actions.error(503), actions.error(500)):
        with proxy.breaking(Rule("PUT", "latents/", action)):
            store.put("latents/0", b"0")
    assert storage_retries() == before + 2
    with pytest.raises(StorageError):
        store.get("latents/1")
    assert storage_retries() == before + 2, "what is not there is asked for once"
    KeyedS3.clear_instance_cache()


def test_a_reset_before_writes_nothing_and_a_reset_after_has_written(
    s3: Bucket, proxy: FaultProxy, client: s3fs.S3FileSystem
) -> None:
    for name, action in (("before", actions.reset_before), ("after", actions.reset_after)):
        with proxy.breaking(Rule("PUT", name, action, times=9)), pytest.raises(BROKEN):
            client.pipe_file(f"{s3.uri}/{name}", b"content")
    assert [path.rpartition("/")[2] for path in client.find(s3.uri)] == ["after"]


def test_an_answer_that_is_cut_is_an_error_and_not_a_shorter_object(
    s3: Bucket, proxy: FaultProxy, client: s3fs.S3FileSystem
) -> None:
    client.pipe_file(f"{s3.uri}/object", b"content" * 100)
    with (
        proxy.breaking(Rule("GET", "object", actions.truncated)),
        pytest.raises(BROKEN),
    ):
        client.cat_file(f"{s3.uri}/object")


def test_a_held_put_arrives_when_it_is_released(
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


def test_a_store_without_conditions_writes_over_what_is_there(
    s3: Bucket, proxy: FaultProxy, client: s3fs.S3FileSystem
) -> None:
    client.pipe_file(f"{s3.uri}/object", b"first", mode="create")
    with pytest.raises(OSError, match="pre-conditions"):
        client.pipe_file(f"{s3.uri}/object", b"second", mode="create")
    direct = s3fs.S3FileSystem(use_listings_cache=False)
    with proxy.breaking(Rule("PUT", "object", actions.unconditional(direct.pipe_file))):
        client.pipe_file(f"{s3.uri}/object", b"third", mode="create")
    assert client.cat_file(f"{s3.uri}/object") == b"third"


def test_a_listing_can_lack_what_was_written(
    s3: Bucket, proxy: FaultProxy, client: s3fs.S3FileSystem
) -> None:
    for name in ("latents/0", "latents/1", "rejects/0"):
        client.pipe_file(f"{s3.uri}/{name}", b"content")
    with proxy.breaking(Rule("GET", "list-type=2", actions.without_entries("latents/1"))):
        assert len(client.find(s3.uri)) == 2
    assert len(client.find(s3.uri)) == 3
