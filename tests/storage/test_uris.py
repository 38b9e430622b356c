"""Promises of URIs and error texts."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import InputError, StorageError
from pipeline.storage import canonical_uri, is_local, one_line
from pipeline.storage.uris import storage_errors


def test_local_paths_become_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for uri in ("photos", "./photos/", f"file://{tmp_path}/photos", f"{tmp_path}/photos"):
        assert canonical_uri(uri) == f"{tmp_path}/photos"
        assert is_local(uri)


def test_other_uris_stay_as_they_are() -> None:
    assert canonical_uri("s3://bucket/a b/") == "s3://bucket/a b"
    assert not is_local("s3://bucket")


@pytest.mark.parametrize(
    "uri",
    [
        "s3://key:hunter22@bucket/x",
        "https://host/s.tar?X-Amz-Signature=hunter22",
        "https://host/s.tar?sv=1&sig=hunter22",
    ],
)
def test_credentials_in_a_uri_are_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(InputError) as caught:
        canonical_uri(uri)
    assert "hunter22" not in str(caught.value)


def test_an_empty_uri_is_refused() -> None:
    with pytest.raises(InputError, match="empty"):
        canonical_uri(" ")


def test_error_texts_are_one_line_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2-hunter2")
    assert one_line(ValueError("bad\n  key hunter2-hunter2")) == "bad key ***"
    assert one_line(ValueError()) == "ValueError"


def test_every_failure_of_a_file_system_is_a_storage_error() -> None:
    for error in (FileNotFoundError(2, "x"), PermissionError(13, "x"), TimeoutError(), EOFError()):
        with pytest.raises(StorageError, match="cannot read 'u': "), storage_errors("read 'u'"):
            raise error
