"""Promises about credentials: errors say what is missing or wrong, and what to set."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest
from botocore.exceptions import ClientError, NoCredentialsError

from jobs import invert_dataset
from pipeline.cli import exit_code_of
from pipeline.errors import AccessError, CredentialsExpiredError, StorageError
from pipeline.storage import (
    Store,
    check_credentials,
    check_output,
    list_shards,
    read_samples,
    s3_filesystem,
)
from pipeline.storage.credentials import wrong_credentials
from pipeline.storage.listing import look_up_all
from pipeline.storage.recognition import read_head
from pipeline.storage.uris import read_file, storage_errors
from pipeline.table import open_table
from pipeline.table.status import table_status
from tests.conftest import Bucket
from tests.faults import actions
from tests.faults.proxy import Exchange, FaultProxy, Rule
from tests.storage.archives import write_parquet, write_tar
from tests.storage.s3_sessions import forget_s3_sessions
from tests.table.rows import shard, write_shard, writer

SECRET = "no-such-secret-key"


@pytest.fixture
def fresh_sessions() -> Iterator[None]:
    """Drop the sessions of these credentials after the test."""
    yield
    forget_s3_sessions()


def missing(patch: pytest.MonkeyPatch) -> None:
    patch.delenv("AWS_ACCESS_KEY_ID")
    patch.delenv("AWS_SECRET_ACCESS_KEY")
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def unknown_key(patch: pytest.MonkeyPatch) -> None:
    patch.setenv("AWS_ACCESS_KEY_ID", "NOSUCHKEY")


def wrong_secret(patch: pytest.MonkeyPatch) -> None:
    patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)


def unknown_profile(patch: pytest.MonkeyPatch) -> None:
    patch.setenv("AWS_PROFILE", "nobodys")


@pytest.mark.usefixtures("fresh_sessions")
@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (missing, "there are no credentials: "),
        (unknown_key, r"the access key is not known there \(InvalidAccessKeyId\): "),
        (wrong_secret, r"the secret key does not belong .* \(SignatureDoesNotMatch\): "),
        (unknown_profile, "The config profile .nobodys. could not be found: "),
    ],
)
def test_invalid_credentials_are_reported_with_what_to_set(
    s3: Bucket,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[pytest.MonkeyPatch], None],
    why: str,
) -> None:
    Store(s3.uri).put("photos/a.jpg", b"x")
    check_credentials(f"{s3.uri}/photos")
    check_credentials(f"{s3.uri}/nowhere")
    spoil(monkeypatch)
    forget_s3_sessions()  # it holds a session with the valid credentials
    endpoint = s3.env["AWS_ENDPOINT_URL"]
    for check in (check_credentials, check_output):
        with pytest.raises(AccessError, match=why) as error:
            check(f"{s3.uri}/photos")
        message = str(error.value)
        assert "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE" in message
        assert f"AWS_ENDPOINT_URL (now {endpoint})" in message
        assert SECRET not in message
    with pytest.raises(AccessError):
        Store(s3.uri).names()


@pytest.mark.usefixtures("fresh_sessions")
@pytest.mark.parametrize("flag", ["--input", "--output"])
def test_job_with_wrong_credentials_exits_with_2(
    s3: Bucket,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    flag: str,
) -> None:
    (tmp_path / "0.jpg").write_bytes(b"x")
    Store(s3.uri).put("photos/0.jpg", b"x")
    wrong_secret(monkeypatch)
    forget_s3_sessions()
    places = {"--input": str(tmp_path), "--output": str(tmp_path.with_name("table"))}
    places[flag] = f"{s3.uri}/photos"
    assert invert_dataset.main([word for pair in places.items() for word in pair]) == 2
    output = capsys.readouterr()
    assert output.err.count("\n") == output.out.count("\n") == 1
    assert "(SignatureDoesNotMatch): set AWS_ACCESS_KEY_ID" in output.err


def test_message_names_amazon_without_an_endpoint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    assert "it is not set: Amazon's own" in str(wrong_credentials(NoCredentialsError()))


@pytest.fixture
def through(s3: Bucket, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """Send this process's S3 requests through the proxy, with separate sessions."""
    del s3
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    forget_s3_sessions()
    yield proxy
    forget_s3_sessions()


def every_use(root: str) -> dict[str, Callable[[], object]]:
    """Return every operation of this package on a bucket, for a bucket that `fill` has filled."""
    store, table = Store(f"{root}/in"), open_table(f"{root}/table")
    tar, packed, parquet, folder = list_shards(store.root)
    uses: dict[str, Callable[[], object]] = {
        "put": lambda: store.put("new", b"1"),
        "put_if_absent": lambda: store.put_if_absent("new", b"1"),
        "get": lambda: store.get("a.jpg"),
        "open": lambda: store.open("a.jpg").__enter__(),
        "exists": lambda: store.exists("a.jpg"),
        "info": lambda: store.info("a.jpg"),
        "names": store.names,
        "infos": lambda: list(store.infos()),
        "has": lambda: Store(root).has(""),
        "remove": lambda: store.remove("a.jpg"),
        "read_file": lambda: read_file(f"{store.root}/a.jpg"),
        "list_shards": lambda: list_shards(store.root).first(),
        "sniffing": lambda: read_head(f"{store.root}/a.jpg"),
        "a range": lambda: [*look_up_all([f"{store.root}/{{a,b}}.tar"])],
        "check_output": lambda: check_output(root),
        "check_credentials": lambda: check_credentials(root),
        "status": lambda: table_status(f"{root}/table"),
        "open_table": lambda: open_table(f"{root}/table"),
        "query": lambda: table.sql("SELECT l2 FROM latents"),
        "batches": lambda: [*table.batches("SELECT l2 FROM latents", 2)],
        "codes": lambda: table.w_plus(["x"]),
        "verify": table.verify,
    }
    for item in (tar, packed, parquet, folder):
        uses[f"reading {item.kind}"] = partial(lambda item: [*read_samples(item)], item)
    return uses


def fill(root: str, folder: Path) -> None:
    """Write shards of every kind below `in/`, and a table."""
    store = Store(f"{root}/in")
    write_tar(folder / "1.tar", [("a.jpg", b"x")])
    with zipfile.ZipFile(folder / "2.zip", "w") as packed:
        packed.writestr("a.jpg", b"x")
    # A row without bytes, whose image is read from another file.
    images = pa.array(
        [{"bytes": None, "path": "a.jpg"}], pa.struct({"bytes": "binary", "path": "string"})
    )
    write_parquet(folder / "3.parquet", {"image": images})
    for path in folder.iterdir():
        store.put(path.name, path.read_bytes())
    store.put("a.jpg", b"x")
    write_shard(writer(f"{root}/table"), shard())


def test_expired_credentials_are_reported_by_every_operation(
    s3: Bucket, through: FaultProxy, tmp_path: Path
) -> None:
    fill(s3.uri, tmp_path)
    uses = every_use(s3.uri)
    messages = {}
    with through.breaking(Rule(".*", "", actions.refusing(400, "ExpiredToken"), times=1_000_000)):
        for name, use in uses.items():
            try:
                messages[name] = repr(use())
            except CredentialsExpiredError as error:
                messages[name] = str(error).replace(s3.uri, "s3://b")
            except Exception as error:  # noqa: BLE001 - reported below as a failure of the test
                messages[name] = repr(error)
    expected = re.compile(
        r"cannot \w+( \w+)? 's3://b.*': credentials expired \(ExpiredToken\): get new"
    )
    assert {name: text for name, text in messages.items() if not expected.match(text)} == {}


@pytest.mark.parametrize(
    ("status", "code", "why"),
    [
        (400, "TokenRefreshRequired", r"credentials expired \(TokenRefreshRequired\)"),
        (400, "InvalidToken", r"the session token is not valid \(InvalidToken\): set AWS_"),
        (403, "InvalidAccessKeyId", r"the access key is not known there \(InvalidAccessKeyId\)"),
        (403, "RequestTimeTooSkewed", r"the clock of this machine is wrong .*: set it"),
        (403, "AccessDenied", r"access denied \(AccessDenied\): the credentials have no right"),
    ],
)
def test_reason_of_a_refused_head_is_requested(
    s3: Bucket, through: FaultProxy, status: int, code: str, why: str
) -> None:
    with through.breaking(Rule(".*", "", actions.refusing(status, code), times=1_000_000)):
        for request in (lambda: Store(s3.uri).exists("a"), lambda: Store(s3.uri).has("")):
            with pytest.raises(AccessError, match=why):
                request()


def test_refusal_without_a_reason_says_so(s3: Bucket, through: FaultProxy) -> None:
    only_heads = through.breaking(
        Rule("HEAD", "", actions.refusing(400, "ExpiredToken"), times=1_000_000)
    )
    with only_heads:
        with pytest.raises(StorageError, match=r"without a reason .*expired"):
            Store(s3.uri).exists("nowhere")
        assert Store(s3.uri).has(""), "a bucket that can be listed exists"


@pytest.fixture
def aws_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return a writer of the AWS configuration file, the only place with credentials."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    path = tmp_path / "aws-config"
    monkeypatch.setenv("AWS_CONFIG_FILE", str(path))
    return lambda text: void(path.write_text(text))


def void(_: object) -> None:
    """Discard a value."""


def test_renewed_credentials_are_used_without_a_restart(
    s3: Bucket,
    through: FaultProxy,
    aws_files: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def expire_tokens(exchange: Exchange) -> None:
        if b"x-amz-security-token: old" in exchange.head.lower():
            await actions.refusing(400, "ExpiredToken")(exchange)
        else:
            await exchange.send(await exchange.forward())

    monkeypatch.setenv("AWS_PROFILE", "owner")
    aws_files(s3.server.profile("owner", aws_session_token="old"))
    store = Store(s3.uri)
    with through.breaking(Rule(".*", "", expire_tokens, times=1_000_000)):
        with pytest.raises(CredentialsExpiredError):
            store.put("a", b"1")
        monkeypatch.setattr(s3_filesystem, "RENEW_EVERY_S", 0.0)
        aws_files(s3.server.profile("owner"))
        store.put("a", b"1")
        assert store.get("a") == b"1"


def test_expired_credentials_of_a_program_are_reported(
    s3: Bucket,
    through: FaultProxy,
    aws_files: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    del through
    old = {"Version": 1, "AccessKeyId": "a", "SecretAccessKey": SECRET, "SessionToken": "c"}
    (tmp_path / "old.json").write_text(json.dumps(old | {"Expiration": "2020-01-01T00:00:00Z"}))
    aws_files(f"[profile program]\ncredential_process = /bin/cat {tmp_path}/old.json\n")
    monkeypatch.setenv("AWS_PROFILE", "program")
    with pytest.raises(CredentialsExpiredError, match="credentials expired: get new") as error:
        Store(s3.uri).get("a")
    assert SECRET not in str(error.value)


def raise_in(error: Exception) -> None:
    with storage_errors("read 's3://bucket/x'"):
        raise error


def test_missing_rights_are_not_wrong_credentials() -> None:
    denied = PermissionError("Access Denied")
    denied.__cause__ = ClientError({"Error": {"Code": "AccessDenied"}}, "GetObject")  # type: ignore[arg-type]
    assert wrong_credentials(denied) is None
    with pytest.raises(AccessError, match="access denied"):
        raise_in(denied)


def test_access_error_exits_with_2(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def work() -> int:
        raise AccessError("cannot open 's3://bucket': there are no credentials")

    assert exit_code_of(work) == 2
    assert capsys.readouterr().err.count("\n") == 1
