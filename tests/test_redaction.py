"""Credentials in URIs and texts are blanked out; everything else is kept."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from contextlib import redirect_stderr, suppress
from pathlib import Path

import pytest

from pipeline.cli import job_parser
from pipeline.config_loading import read_config_file
from pipeline.engine.events import log_event, logging_to_stderr
from pipeline.errors import ConfigError, FingerprintError, InputError, StorageError
from pipeline.redaction import carries_secrets, clean, without_secrets
from pipeline.storage import canonical_uri, one_line
from pipeline.table.spec import to_json

SECRET = "hunter22+hunter22"
URIS = [
    f"https://user:{SECRET}@host/x.tar",
    f"https://{SECRET}@host/x.tar",
    f"https://user:a/b/{SECRET}@host/x.tar",
    f"https://user:{SECRET}/c@host:8080/x.tar",
    f"https://user:x@{SECRET}@host/x.tar",
    f"sftp://user:{SECRET}@host/x.tar",
    f"sftp://user@host:{SECRET}/x@host/x.tar",
    f"abfs://container:{SECRET}@account.dfs.core.windows.net/x.tar",
    f"abfs://container%3A{SECRET}@account.dfs.core.windows.net/x.tar",
    f's3://AKIA0:x"{SECRET}@bucket/x.tar',
    f's3://AKIA0:x"y/{SECRET}@bucket/x.tar',
    f"https://user:p {SECRET}@host/x.tar",
    f"https://user:p\n{SECRET} x@host/x.tar",
    f"https:///user:{SECRET}@host/x.tar",
    f"s3:////AKIA0:{SECRET}@bucket/x.tar",
    f'https://host/x?key=a"{SECRET}',
    f's3://bucket/x?token="{SECRET}',
    f"HTTPS://user:{SECRET}@host/x.tar",
    f"s3://AKIA0:{SECRET}@bucket/x.tar",
    f"s3://AKIA0:1234/{SECRET}@bucket/x.tar",
    f"s3://AKIA0:abc/{SECRET}/d@bucket/x.tar",
    f"gs://key:{SECRET}/@bucket/x.tar",
    f"simplecache::s3://key:{SECRET}@bucket/x.tar",
    f"zip://a.jpg::s3://key:{SECRET}/w@bucket/x.zip",
    f"https://proxy/get,s3://key:{SECRET}/w@bucket/x",
    *(
        f"https://host/x.tar?a=1&{name}={SECRET}"
        for name in (
            *("key", "api_key", "apikey", "password", "pwd", "jwt", "authorization", "auth"),
            *("token", "access_token", "sig", "signature", "X-Amz-Signature", "X-Goog-Signature"),
            *("X-Amz-Security-Token", "code", "sas", "credential", "q", "Policy", "hmac"),
        )
    ),
    f"https://host/x.tar?versionId=7&sv=2024&sig={SECRET}#x",
    f"https://host/x.tar?{SECRET}",
    f"https://host/x.tar?{SECRET}=",
    f"https://host/x.tar?versionId=1&{SECRET}",
    f"https://host/x.tar#access_token={SECRET}",
    f"https://host/x.tar#{SECRET}",
    f"https://host/x.tar?download=1#id_token={SECRET}&x=1",
    *(
        f"s3://bucket/x.tar?{name}={SECRET}"
        for name in ("token", "X-Amz-Signature", "password", "jwt", "api_key", "AWSSecretKey")
    ),
]
KEPT = [
    *("s3://bucket/a@b", "s3://bucket/a b", "s3://bucket/who?.jpg", "s3://bucket/a=1&b=2/x.tar"),
    *("s3://arn:aws:s3:eu-1:123:accesspoint/x/me@here", "https://host:8080/@me/x.tar"),
    *("https://[::1]:8080/a@b", "https://host/x.tar?versionId=abc.-_1", "https://host/?download=1"),
    *("https://host/x.parquet#12", "https://host/x.parquet#12~2", "hf://datasets/a/b@main/c.tar"),
    *("zip://a.jpg::s3://bucket/me@here.zip", "file:///a:b/c@d", "memory://x#y?z=1"),
    *("abfs://container@acct.dfs.core.windows.net/x", "abfss://c@acct.dfs.core.windows.net/me@x"),
    *("sftp://user@host/data", "sftp://user@host:22/me@here", "hdfs://me@namenode/x"),
    *('s3://bucket/my "file" a@b', "s3:///bucket/a@b"),
    *("no URI: me@host and a?b=c#d", "http://host:/x", "https://host/x.tar"),
]


def _wrong_flag(uri: str) -> str:
    said = io.StringIO()
    with redirect_stderr(said), suppress(SystemExit):
        job_parser("x", last_line={}).parse_args([f"--inptu={uri}", uri])
    return said.getvalue()


def _refused(uri: str) -> str:
    with pytest.raises(InputError, match="carries credentials") as caught:
        canonical_uri(uri)
    return f"{caught.value} {caught.value.args}"


def _event(uri: str) -> str:
    said = io.StringIO()
    with redirect_stderr(said), logging_to_stderr(json_lines=True):
        log_event("x", table=uri, list=[{"uri": uri}], more={uri: 1})
    assert json.loads(said.getvalue())["event"] == "x"
    return said.getvalue()


PLACES: dict[str, Callable[[str], str]] = {
    "text": without_secrets,
    "text around": lambda uri: without_secrets(f"cannot read '{uri}', (see {uri})."),
    "list": lambda uri: without_secrets(repr([uri, uri])),
    "values": lambda uri: str(clean({"a": [uri, {uri: uri}]})),
    "one line": lambda uri: one_line(ValueError(f"bad\n  '{uri}'")),
    "error": lambda uri: str(StorageError(f"cannot read '{uri}'")),
    "error that is cut": lambda uri: str(InputError("x" * 680 + uri + "y" * 900)),
    "differences": lambda uri: str(FingerprintError(f"differs:\n  input: {uri}\n  to: '{uri}'")),
    "document": lambda uri: to_json({"input": uri, "list": [uri], uri: 1}).decode(),
    "log": _event,
    "flag": _wrong_flag,
    "refusal": _refused,
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("uri", URIS)
def test_credentials_in_uris_are_never_repeated(uri: str, place: str) -> None:
    said = PLACES[place](uri)
    assert said
    for part in (SECRET, SECRET.split("+")[0], SECRET[:6]):
        assert part not in said


@pytest.mark.parametrize("text", KEPT)
def test_text_without_credentials_is_unchanged(text: str) -> None:
    assert not carries_secrets(text)
    assert without_secrets(f"cannot read '{text}', ({text}).") == (
        f"cannot read '{text}', ({text})."
    )


@pytest.mark.parametrize(
    "text",
    [
        *("https://host: refused, ask me@host", "https://host:8080: refused, ask me@host"),
        *("'https://host:', me@host", '{"a": "https://host:80", "b": "c:d@e"}'),
        *('{"a":"https://host/x?page=1","b":"c@d"}', "s3://bucket/x: asked by a:b@c"),
    ],
)
def test_mail_address_after_a_uri_is_kept(text: str) -> None:
    assert without_secrets(text) == text


@pytest.mark.parametrize(
    ("text", "blanked"),
    [
        ("no 'https://h/x?sig=one two three': gone", "no 'https://h/x?sig=***': gone"),
        ('no "zip://a::https://h/x?q=one two"', 'no "zip://a::https://h/x?q=***"'),
        ("https://h/x?q=one two&page=2 is", "https://h/x?q=***&page=2 is"),
        ("?token=one two three&page=2 is", "?token=***&page=2 is"),
        ("see https://u:'one two'@h/x", "see https://***@h/x"),
        ('see postgres://u:" one two"@h/x', "see postgres://***@h/x"),
        ("no 's3://b/it's here' nor 's3://b/y'", "no 's3://b/it's here' nor 's3://b/y'"),
    ],
)
def test_credentials_may_contain_spaces_and_quotes(text: str, blanked: str) -> None:
    assert without_secrets(text) == blanked


def test_config_values_are_blanked_before_they_are_cut(tmp_path: Path) -> None:
    uri = f"https://user:{'x' * 90}{SECRET}{'x' * 190}@host/x"
    (tmp_path / "run.yaml").write_text(f"steps: [{uri!r}]\ninput: a\noutput: b\n")
    from pipeline.config import load_config

    with pytest.raises(ConfigError, match="steps") as caught:
        load_config(str(tmp_path / "run.yaml"), {})
    assert "xxx" not in str(caught.value)
    assert read_config_file(str(tmp_path / "run.yaml"))[0]["steps"] == [uri]


@pytest.mark.parametrize(
    "secret", ["with a/slash+plus", 'with "quotes" and \\', "two\nlines of it", "zürich-zürich"]
)
def test_credentials_of_the_environment_are_blanked_in_every_form(
    secret: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from urllib.parse import quote

    monkeypatch.setenv("SOME_API_KEY", secret)
    forms = (secret, quote(secret), quote(secret, safe=""), " ".join(secret.split()))
    for form in forms:
        for name, place in PLACES.items():
            if name not in ("refusal", "flag"):
                said = place(f"x-{form}-y")
                assert "***" in said, (name, form)
                assert form not in said


@pytest.mark.parametrize(
    "said",
    ["Authorization: Bearer abcdef.ghi", "'authorization': 'Basic YWJjZGVm'", "bearer abcdefghi"],
)
def test_authorization_headers_are_blanked(said: str) -> None:
    assert without_secrets(f"403: {said}, sent") in (
        "403: Authorization: Bearer ***, sent",
        "403: 'authorization': 'Basic ***', sent",
        "403: bearer ***, sent",
    )


LONG = {
    "secret words": "?token",
    "schemes": "a://",
    "users": "@",
    "letters": "x",
    "pairs": "a?",
    "spaces": " ",
    "queries": "a&",
    "passwords": "a://b:c ",
    "marks": '"a',
}


@pytest.mark.timeout(60)  # quadratic time would take hours
@pytest.mark.parametrize("name", LONG)
def test_long_texts_take_linear_time(name: str) -> None:
    repeated = LONG[name] * 500_000
    for head in ("", "https://", "https://h/?", "authorization"):
        without_secrets(head + repeated + "://")
