"""Promises about credentials: what is missing or wrong is said, with what to set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from botocore.exceptions import ClientError, NoCredentialsError

from jobs import invert_dataset
from pipeline.command_line import exit_code_of
from pipeline.errors import AccessError
from pipeline.storage import Store, check_credentials, check_output
from pipeline.storage.access import is_refusal, wrong_credentials
from pipeline.storage.keyed_s3 import KeyedS3
from pipeline.storage.uris import storage_errors
from tests.conftest import Bucket

SECRET = "no-such-secret-key"


@pytest.fixture
def fresh_sessions() -> Iterator[None]:
    """No session of these credentials is left to other tests."""
    yield
    KeyedS3.clear_instance_cache()


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
        (wrong_secret, r"the secret key is not the access key's \(SignatureDoesNotMatch\): "),
        (unknown_profile, "The config profile .nobodys. could not be found: "),
    ],
)
def test_credentials_that_do_not_do_are_told_with_what_to_set(
    s3: Bucket,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[pytest.MonkeyPatch], None],
    why: str,
) -> None:
    Store(s3.uri).put("photos/a.jpg", b"x")
    check_credentials(f"{s3.uri}/photos")
    check_credentials(f"{s3.uri}/nowhere")
    spoil(monkeypatch)
    KeyedS3.clear_instance_cache()  # which holds a session of the good credentials
    endpoint = s3.env["AWS_ENDPOINT_URL"]
    for check in (check_credentials, check_output):
        with pytest.raises(AccessError, match=why) as error:
            check(f"{s3.uri}/photos")
        told = str(error.value)
        assert "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE" in told
        assert f"AWS_ENDPOINT_URL (now {endpoint})" in told
        assert SECRET not in told
    with pytest.raises(AccessError):
        Store(s3.uri).names()


@pytest.mark.usefixtures("fresh_sessions")
@pytest.mark.parametrize("flag", ["--input", "--output"])
def test_a_job_with_wrong_credentials_ends_with_code_2_and_one_line(
    s3: Bucket,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    flag: str,
) -> None:
    (tmp_path / "0.jpg").write_bytes(b"x")
    Store(s3.uri).put("photos/0.jpg", b"x")
    wrong_secret(monkeypatch)
    KeyedS3.clear_instance_cache()
    places = {"--input": str(tmp_path), "--output": str(tmp_path.with_name("table"))}
    places[flag] = f"{s3.uri}/photos"
    assert invert_dataset.main([word for pair in places.items() for word in pair]) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == said.out.count("\n") == 1
    assert "(SignatureDoesNotMatch): set AWS_ACCESS_KEY_ID" in said.err


def test_amazons_own_service_is_told_where_no_endpoint_is_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    assert "it is not set: Amazon's own" in str(wrong_credentials(NoCredentialsError()))


def test_expired_credentials_are_told_as_such() -> None:
    body = {"Error": {"Code": "ExpiredToken", "Message": "The provided token has expired."}}
    refused = PermissionError("The provided token has expired.")
    refused.__cause__ = ClientError(body, "ListObjectsV2")  # type: ignore[arg-type]
    with pytest.raises(AccessError, match=r"credentials have expired \(ExpiredToken\): set AWS_"):
        raise_in(refused)
    assert is_refusal(OSError(22, "Bad Request")), "which is all that a HEAD says of it"


def raise_in(error: Exception) -> None:
    with storage_errors("read 's3://bucket/x'"):
        raise error


def test_rights_that_are_missing_are_no_wrong_credentials() -> None:
    denied = PermissionError("Access Denied")
    denied.__cause__ = ClientError({"Error": {"Code": "AccessDenied"}}, "GetObject")  # type: ignore[arg-type]
    assert wrong_credentials(denied) is None
    with pytest.raises(AccessError, match="access denied"):
        raise_in(denied)


def test_storage_that_is_closed_to_the_user_is_a_wrong_request(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def work() -> int:
        raise AccessError("cannot open 's3://bucket': there are no credentials")

    assert exit_code_of(work) == 2
    assert capsys.readouterr().err.count("\n") == 1
