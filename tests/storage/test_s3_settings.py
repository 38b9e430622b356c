"""Promises of the section on S3 in `pipeline/storage/README.md`, against a real server."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec.config
import pytest

from pipeline.errors import AccessError, InputError
from pipeline.storage import S3_PROFILES, Store, list_shards, read_samples
from pipeline.storage.credentials import s3_options
from tests.conftest import Bucket
from tests.faults import actions
from tests.faults.proxy import Exchange, FaultProxy, Rule
from tests.s3_server import S3Server, drop_bucket, make_bucket
from tests.storage.s3_sessions import forget_s3_sessions

ALWAYS = 1_000_000
DEAD = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def _fresh_sessions() -> Iterator[None]:
    """Drop all S3 sessions before and after each test."""
    forget_s3_sessions()
    yield
    forget_s3_sessions()


@contextmanager
def heads_of(proxy: FaultProxy) -> Iterator[list[str]]:
    """Collect the heads of the requests through the proxy, in lower case."""
    heads: list[str] = []

    async def pass_on(exchange: Exchange) -> None:
        heads.append(exchange.head.decode("latin-1").lower())
        await exchange.send(await exchange.forward())

    with proxy.breaking(Rule(".*", "", pass_on, times=ALWAYS)):
        yield heads


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return a writer of this process's AWS configuration file."""
    path = tmp_path / "aws-config"
    monkeypatch.setenv("AWS_CONFIG_FILE", str(path))

    def write(text: str) -> None:
        path.write_text(text)

    return write


@pytest.mark.parametrize(
    ("variables", "profile", "sent", "absent"),
    [
        ({}, {}, ["x-amz-checksum-crc", "/us-east-1/s3/", "put /bucket-"], []),
        (
            {"AWS_REQUEST_CHECKSUM_CALCULATION": "when_required"},
            {},
            ["put /bucket-"],
            ["x-amz-checksum-crc", "x-amz-sdk-checksum"],
        ),
        ({"AWS_DEFAULT_REGION": "eu-north-1"}, {}, ["/eu-north-1/s3/"], []),
        ({"AWS_PROFILE": "owner"}, {"s3": "\n  addressing_style = virtual"}, ["put /a "], []),
        ({"AWS_ENDPOINT_URL": DEAD, "AWS_ENDPOINT_URL_S3": "{proxy}"}, {}, ["put /bucket-"], []),
    ],
    ids=["defaults", "checksums", "region", "virtual host", "endpoint of S3 alone"],
)
def test_settings_of_environment_and_profile_are_sent(
    s3: Bucket,
    proxy: FaultProxy,
    config: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    profile: dict[str, str],
    sent: list[str],
    absent: list[str],
) -> None:
    url = proxy.url.replace("127.0.0.1", "localhost")
    for name, value in ({"AWS_ENDPOINT_URL": url} | variables).items():
        monkeypatch.setenv(name, value.format(proxy=url))
    config(s3.server.profile("owner", **profile))
    resolve_below_localhost(monkeypatch)
    with heads_of(proxy) as heads:
        Store(s3.uri).put("a", b"1")
    (put,) = [head for head in heads if head.startswith("put")]
    assert [text for text in sent if text not in put] == []
    assert [text for text in absent if text in put] == []
    assert Store(s3.uri).get("a") == b"1"


def resolve_below_localhost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resolve `bucket.localhost` as RFC 6761 says; not every machine does."""
    resolve = socket.getaddrinfo

    def look_up(host: Any, *arguments: Any, **more: Any) -> Any:
        name = host if isinstance(host, str) else ""
        return resolve("127.0.0.1" if name.endswith("localhost") else host, *arguments, **more)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


def set_fsspec(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    """Make fsspec read its variables, which it does once per process."""
    settings: dict[str, Any] = {}
    fsspec.config.set_conf_env(settings, variables)
    for protocol, options in settings.items():
        monkeypatch.setitem(fsspec.config.conf, protocol, options)
    forget_s3_sessions()


def test_requester_pays_bucket_is_read_if_set(
    s3: Bucket, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ask_for_payer(exchange: Exchange) -> None:
        if b"x-amz-request-payer: requester" in exchange.head.lower():
            await exchange.send(await exchange.forward())
        else:
            await actions.refusing(403, "AccessDenied")(exchange)

    for name in ("a.jpg", "b.jpg"):
        Store(s3.uri).put(name, b"x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    forget_s3_sessions()
    with proxy.breaking(Rule(".*", "", ask_for_payer, times=ALWAYS)):
        with pytest.raises(AccessError, match="whose reader pays, set FSSPEC_S3_REQUESTER_PAYS="):
            list_shards(s3.uri).first()
        set_fsspec(monkeypatch, FSSPEC_S3_REQUESTER_PAYS="true")
        (shard,) = list_shards(s3.uri)
        assert [sample.content for sample in read_samples(shard)] == [b"x", b"x"]
        store = Store(s3.uri)
        assert store.exists("a.jpg")
        with store.open("a.jpg") as file:
            assert file.read() == b"x"


@pytest.fixture
def buckets(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """Yield three buckets with a file, in an environment without keys and endpoint."""
    for name, value in s3_server.env.items():
        monkeypatch.setenv(name, value)
    names = {name: f"{name}-settings" for name in ("photos", "results", "open")}
    uris = {name: make_bucket(s3_server, bucket) for name, bucket in names.items()}
    for uri in uris.values():
        Store(uri).put("a.jpg", b"x")
    forget_s3_sessions()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", DEAD)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    yield uris
    for bucket in names.values():
        drop_bucket(s3_server, bucket)


def test_each_bucket_uses_its_own_profile(
    s3_server: S3Server,
    s3: Bucket,
    proxy: FaultProxy,
    buckets: dict[str, str],
    config: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    del s3
    config(
        s3_server.profile("reader", endpoint_url=proxy.url, region="eu-north-1")
        + s3_server.profile("writer", services="ours", region="eu-west-1")
        + f"[services ours]\ns3 =\n  endpoint_url = {s3_server.endpoint}\n"
        + f"[profile anyone]\nanonymous = true\nendpoint_url = {s3_server.endpoint}\n"
    )
    chosen = {buckets["photos"]: "reader", buckets["results"]: "writer", buckets["open"]: "anyone"}
    monkeypatch.setenv(S3_PROFILES, " ".join(f"{uri}={name}" for uri, name in chosen.items()))
    with heads_of(proxy) as heads:
        (shard,) = list_shards(buckets["photos"])
        assert [sample.content for sample in read_samples(shard)] == [b"x"]
    assert heads
    assert [head for head in heads if "/eu-north-1/s3/" not in head] == []
    Store(buckets["results"]).put("table/b", b"2")
    assert Store(buckets["results"]).names() == ["a.jpg", "table/b"]
    assert Store(buckets["open"]).get("a.jpg") == b"x"
    for uri in (buckets["photos"], buckets["open"]):
        with pytest.raises(AccessError, match="access denied"):
            Store(uri).put("b", b"2")
    swapped = f"{buckets['photos']}=writer {buckets['photos']}/deeper=reader"
    monkeypatch.setenv(S3_PROFILES, swapped)
    with pytest.raises(AccessError, match="access denied"):
        Store(buckets["photos"]).names()
    assert Store(f"{buckets['photos']}/deeper").names() == []


def test_missing_profile_is_reported_with_the_variable(
    config: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    config("")
    monkeypatch.setenv(S3_PROFILES, "s3://photos=nobodys")
    with pytest.raises(AccessError, match=f"{S3_PROFILES} names the profile 'nobodys'"):
        Store("s3://photos/x").names()
    assert s3_options("s3://photos-2/x") == s3_options("memory://photos/x") == {}
    for text in ("photos=reader", "s3://photos", "s3://photos=", "reader"):
        monkeypatch.setenv(S3_PROFILES, text)
        with pytest.raises(InputError, match=f"{S3_PROFILES}: .* is not of the form s3://BUCKET"):
            Store("s3://photos/x").names()
