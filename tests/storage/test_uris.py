"""Promises of URIs and error texts."""

from __future__ import annotations

from pathlib import Path

import fsspec.config
import pytest
from aiohttp import ClientPayloadError
from botocore.exceptions import ClientError, NoCredentialsError
from google.auth.exceptions import DefaultCredentialsError

from pipeline.errors import InputError, StorageError
from pipeline.redaction import without_secrets
from pipeline.storage import (
    canonical_uri,
    check_output,
    is_local,
    list_shards,
    one_line,
)
from pipeline.storage.uris import read_file, storage_errors
from tests.storage.archives import write_files, write_tar


def test_local_paths_become_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for uri in ("photos", "./photos/", f"file://{tmp_path}/photos", f"{tmp_path}/photos"):
        assert canonical_uri(uri) == f"{tmp_path}/photos"
        assert is_local(uri)


def test_dots_in_local_paths_are_resolved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    monkeypatch.chdir(tmp_path / "x")
    for uri in ("../photos", "../x/../photos/.", f"file://{tmp_path}/gone/../photos"):
        assert canonical_uri(uri) == f"{tmp_path}/photos"
    assert canonical_uri("s3://bucket/x/../photos") == "s3://bucket/x/../photos", "a key of its own"


def test_dots_behind_a_link_follow_the_link(tmp_path: Path) -> None:
    (tmp_path / "far" / "x").mkdir(parents=True)
    (tmp_path / "near").symlink_to(tmp_path / "far" / "x")
    assert canonical_uri(f"{tmp_path}/near/../photos") == f"{tmp_path}/far/photos"
    assert canonical_uri(f"{tmp_path}/near/photos") == f"{tmp_path}/near/photos"


def test_other_uris_are_unchanged() -> None:
    assert canonical_uri("s3://bucket/a b/") == "s3://bucket/a b"
    assert not is_local("s3://bucket")


@pytest.mark.parametrize(
    "uri",
    [
        "s3://key:hunter22@bucket/x",
        "https://host/s.tar?X-Amz-Signature=hunter22",
        "https://host/s.tar?sv=1&sig=hunter22",
        "simplecache::s3://key:hunter22@bucket/x",
        "file://key:hunter22@host/x",
    ],
)
def test_uri_with_credentials_is_refused(uri: str) -> None:
    with pytest.raises(InputError) as caught:
        canonical_uri(uri)
    assert "hunter22" not in str(caught.value)


def test_empty_uri_is_refused() -> None:
    with pytest.raises(InputError, match="empty"):
        canonical_uri(" ")


def test_error_texts_are_one_line_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2-hunter2")
    assert one_line(ValueError("bad\n  key hunter2-hunter2")) == "bad key ***"
    assert one_line(ValueError()) == "ValueError"


def test_credentials_in_texts_are_blanked_out() -> None:
    text = "cannot reach https://user:pw-1@host/x?a=1&sig=pw-2, nor 's3://key:pw-3@bucket'"
    assert without_secrets(text) == (
        "cannot reach https://***@host/x?a=***&sig=***, nor 's3://***@bucket'"
    )
    assert without_secrets("mail me@here about //x and s3://bucket/a@b") == (
        "mail me@here about //x and s3://bucket/a@b"
    )


def test_access_key_id_is_not_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "facedata")
    monkeypatch.setitem(fsspec.config.conf, "s3", {"key": "facedata", "secret": "hunter22"})
    assert without_secrets("/disk/facedata/in hunter22") == "/disk/facedata/in ***"


def test_path_with_a_secret_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blanked out in the table, the path would not be recognised by the next run."""
    write_files(tmp_path / "of-hunter22", "1.jpg")
    write_tar(tmp_path / "in" / "000.tar", [])
    write_tar(tmp_path / "in" / "hunter22.tar", [])
    monkeypatch.setenv("SOME_TOKEN", "hunter22")
    for refused in (
        lambda: check_output(f"{tmp_path}/hunter22"),
        lambda: list(list_shards(f"{tmp_path}/of-hunter22")),
        lambda: list(list_shards(f"{tmp_path}/in")),
        lambda: list(list_shards("s3://hunter22/x")),
    ):
        with pytest.raises(InputError, match="the environment variable SOME_TOKEN") as caught:
            refused()
        assert "hunter22" not in str(caught.value)
    monkeypatch.delenv("SOME_TOKEN")
    monkeypatch.setitem(fsspec.config.conf, "s3", {"secret": "hunter22"})
    with pytest.raises(InputError, match=r"fsspec's setting s3\.secret"):
        check_output(f"{tmp_path}/hunter22")


def test_files_are_read_from_paths_and_uris(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    assert read_file(str(tmp_path / "a")) == read_file(f"file://{tmp_path}/a") == b"0123456789"
    assert read_file(str(tmp_path / "a"), 4) == b"0123"
    with pytest.raises(StorageError, match="not found") as caught:
        read_file("memory://nowhere")
    assert isinstance(caught.value.__cause__, FileNotFoundError)
    with pytest.raises(InputError, match="nobodys"):
        read_file("nobodys://x")


def test_file_system_failures_are_storage_errors() -> None:
    for error in (
        FileNotFoundError(2, "x"),
        PermissionError(13, "x"),
        TimeoutError(),
        EOFError(),
        NotImplementedError(),
        NoCredentialsError(),
        ClientError({}, "GetObject"),
        ClientPayloadError(),
        DefaultCredentialsError("no credentials"),
        *(
            type("SomeError", (Exception,), {"__module__": module})("Internal, 500")
            for module in ("gcsfs.retry", "httpx2", "httpx", "huggingface_hub.errors")
        ),
    ):
        with pytest.raises(StorageError, match="cannot read 'u': "), storage_errors("read 'u'"):
            raise error


@pytest.mark.parametrize(
    ("uri", "kind"),
    [
        ("hf://nobody", InputError),
        ("hf://datasets/nobody", InputError),
        ("hf://datasets/a@@b/c", InputError),
        ("hf://datasets/nobody/nothing/x.parquet", StorageError),
    ],
)
def test_failure_of_the_hub_is_one_line(
    uri: str, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for read in (read_file, lambda uri: list(list_shards(uri))):
        with pytest.raises(kind, match="cannot read 'hf://"):
            read(uri)
