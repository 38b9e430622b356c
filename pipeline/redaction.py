"""Blank credentials out of texts: those of this process, and those inside URIs.

Every message of this library (`PipelineError`) and every JSON document and line passes through this
module. A credential is recognised by its position: before the host of a URI, in the query or
fragment of an http URI, after a name such as `token=`, or in an environment variable with such a
name.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
import traceback
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

HIDDEN = "***"
# Query parameters of http URIs that only select a version or format of a file.
HARMLESS_QUERIES = (
    *("versionId", "version", "generation", "revision", "rev", "ref", "download", "dl", "raw"),
    *("alt", "format", "export", "page", "start", "limit"),
)
_HARMLESS = frozenset(name.lower() for name in HARMLESS_QUERIES)
# Schemes whose host is a bucket, which has no port.
_WITHOUT_PORTS = {"s3", "s3a", "s3n", "gs", "gcs", "abfs", "abfss", "az", "adl", "wasb", "wasbs"}
# Schemes with a user without a password, or a container of an account, before the host.
_WITH_NAMES = {
    *("abfs", "abfss", "wasb", "wasbs", "sftp", "ssh", "ftp", "ftps", "smb", "hdfs", "webhdfs"),
}
_NAME = re.compile(r"[\w.$-]{1,64}@")
# Schemes whose URIs always name a host: after an empty one the next name is taken as the host.
_WITH_HOSTS = _WITHOUT_PORTS | _WITH_NAMES - {"hdfs"} | {"http", "https"}
_SCHEME = r"[A-Za-z][A-Za-z0-9+.-]{0,20}://"
# A character inside a URI in a text; a quotation mark only if a word character follows.
_INSIDE = r"(?:[^\s\"]|\"(?=[\w%+/=~$-]))"
_NOT_NEXT = rf"(?!(?:::)?{_SCHEME})"
# White space in the value of a query: another `&name=` follows within the same line.
_SPACED = r"\s[^\n\"'&;:]{0,256}(?=[&;][\w.-]{1,64}=)"
# A URI, up to white space or to the next URI (`zip://a.jpg::s3://bucket/b.zip`).
_URI = re.compile(
    rf"(?P<scheme>{_SCHEME})(?P<rest>(?:{_NOT_NEXT}{_INSIDE})*"
    rf"(?:(?:{_SPACED})(?:{_NOT_NEXT}{_INSIDE})*)*)"
)
# A URI in quotation marks, which may hold white space.
_QUOTED_URI = re.compile(
    rf"(?P<mark>['\"])(?P<uri>{_SCHEME}(?:(?!(?P=mark)(?!\w)).){{0,2048}})(?P=mark)",
    re.DOTALL,
)
# A text that is known to be one URI, or a chain of them.
_WHOLE_URI = re.compile(rf"(?P<scheme>{_SCHEME})(?P<rest>(?:(?!(?:::)?{_SCHEME}).)*)", re.DOTALL)
# A password with white space or quotation marks: not like a port, and an "@" follows.
_ODD_PASSWORD = re.compile(
    rf"({_SCHEME})(?!arn:)[^\s\"'/?#@:\[]{{1,128}}:(?=\S)(?!\d{{1,5}}(?:[/?#'\"\s),.;:]|\Z))"
    r"(?!['\"]?(?:[/?#),.;:]|\Z))"
    rf"(?:(?!{_SCHEME})[^@]){{0,256}}@"
)
_PORT = re.compile(r"[^:]*(?::\d{0,5})?|\[[^\]]*\](?::\d{0,5})?")
_ROW = re.compile(r"\d{1,20}(?:~\d+)?")  # row of a Parquet file, after "#"
_END = re.compile(r"['),.;:\]}>]*\Z")  # end of the sentence, not of the URI
_SECRET_WORD = (
    r"[\w.%-]{0,64}(?:secret|token|passw|pwd|passphrase|signature|credential|api[_.-]?key|access[_.-]?key"
    r"|account[_.-]?key|private[_.-]?key|authorization|jwt|session)[\w.%-]{0,64}"
    r"|x-amz-[\w-]{1,64}|x-goog-[\w-]{1,64}|sig|sas|key|pass|pw|auth|code"
)
_BLANKED = rf"{re.escape(HIDDEN)}(?:['\"\s&;#:,).]|\Z)"
_PAIR = re.compile(
    rf"([?&;#](?:{_SECRET_WORD})=)(?!{_BLANKED})(?:(?![&;#]){_INSIDE})*(?:{_SPACED})?",
    re.IGNORECASE,
)
_HEADER = re.compile(
    r"(\bauthorization['\"]?\s*[:=]\s*['\"]?(?:[a-z0-9-]+\s+)?|\bbearer\s+)[\w.~+/=-]{6,}",
    re.IGNORECASE,
)
# Without the id of an access key: it is public, and may equal the name of a project or folder.
_SETTINGS = ("secret", "token", "password", "secret_key")
_VARIABLES = re.compile(
    r"(.*_)?(SECRET|TOKEN|PASSWORD|PASSWD|PASSPHRASE|JWT|CONNECTION_STRING"
    r"|(SECRET|ACCESS|ACCOUNT|API|PRIVATE)_?KEY)"
)
_SHORTEST = 6
_LONGEST_TRACE = 20_000


def trace_of(error: BaseException) -> str:
    """Return the traceback of `error` and its causes, without credentials.

    Limited to the last 20,000 characters, which are nearest to the error.
    """
    return without_secrets("".join(traceback.format_exception(error)))[-_LONGEST_TRACE:]


def known_secrets() -> dict[str, str]:
    """Return the credentials of this process, each with the place where it is set."""
    secrets = {
        value: f"the environment variable {name}"
        for name, value in os.environ.items()
        if _VARIABLES.fullmatch(name.upper())
    }
    # Not imported here: a process that has not imported it has read none of its settings.
    settings = getattr(sys.modules.get("fsspec.config"), "conf", {})
    for protocol, options in settings.items():
        for name in _SETTINGS:
            if name in options:
                secrets[str(options[name])] = f"fsspec's setting {protocol}.{name}"
    return {value: place for value, place in secrets.items() if len(value) >= _SHORTEST}


def without_secrets(text: str) -> str:
    """Return `text` with the credentials of this process and of URIs in it blanked out."""
    return _blanked(text, _forms(known_secrets()))


def clean(value: Any) -> Any:
    """Return `value` (lists and dictionaries) with `without_secrets` applied to every text."""
    return _cleaned(value, _forms(known_secrets()))


def carries_secrets(uri: str) -> bool:
    """Return whether `uri`, one URI or a chain of them, may carry a credential.

    White space and quotation marks do not end it, unlike a URI inside a text.
    """
    whole = _WHOLE_URI.sub(_without_those_of_one, uri)
    return _PAIR.sub(rf"\1{HIDDEN}", whole) != uri


def _cleaned(value: Any, secrets: list[str]) -> Any:
    if isinstance(value, dict):
        return {
            _blanked(name, secrets) if isinstance(name, str) else name: _cleaned(item, secrets)
            for name, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_cleaned(item, secrets) for item in value]
    return _blanked(value, secrets) if isinstance(value, str) else value


def _forms(secrets: Iterable[str]) -> list[str]:
    """Return each secret as it is, in one line, as in a URI and as in JSON; longest first."""
    forms: set[str] = set()
    for secret in secrets:
        forms |= {secret, " ".join(secret.split()), quote(secret), quote(secret, safe="")}
        forms |= {json.dumps(secret)[1:-1]}
    return sorted((form for form in forms if len(form) >= _SHORTEST), key=len, reverse=True)


def _blanked(text: str, secrets: list[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    return _HEADER.sub(rf"\1{HIDDEN}", _without_uri_secrets(text))


def _without_uri_secrets(text: str) -> str:
    if "://" in text:
        text = _ODD_PASSWORD.sub(rf"\1{HIDDEN}@", text)
        text = _QUOTED_URI.sub(_without_those_of_quoted, text)
        text = _URI.sub(_without_those_of_one, text)
    return _PAIR.sub(rf"\1{HIDDEN}", text)


def _without_those_of_quoted(quoted: re.Match[str]) -> str:
    whole = _WHOLE_URI.sub(_without_those_of_one, quoted["uri"])
    return f"{quoted['mark']}{whole}{quoted['mark']}"


def _without_those_of_one(uri: re.Match[str]) -> str:
    scheme, rest = uri["scheme"].removesuffix("://"), uri["rest"]
    if _has_user(scheme, rest):
        rest = f"{HIDDEN}@{rest[rest.rindex('@') + 1 :]}"
    if scheme.lower() in ("http", "https"):
        rest = _without_query(rest)
    return f"{scheme}://{rest}"


def _has_user(scheme: str, rest: str) -> bool:
    """Return whether a token, or a user with a password (may hold slashes), precedes the host."""
    if scheme.lower() in _WITH_NAMES:
        name = _NAME.match(rest)
        rest = rest[name.end() :] if name else rest
    if scheme.lower() in _WITH_HOSTS:
        rest = rest.lstrip("/")
    if "@" not in rest:
        return False
    host = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if "@" in rest.split("/", 1)[0]:
        return True
    if host.startswith("arn:"):  # an access point of S3
        return False
    return ":" in host if scheme.lower() in _WITHOUT_PORTS else not _PORT.fullmatch(host)


def _without_query(rest: str) -> str:
    end = _END.search(rest)
    stop = end.start() if end else len(rest)
    parts = re.match(r"([^?#]*)(\?[^#]*)?(#.*)?\Z", rest[:stop], re.DOTALL)
    if parts is None:
        return rest
    path, query, fragment = parts[1], parts[2] or "", parts[3] or ""
    if query:
        query = "?" + "&".join(map(_without_value, re.split("[&;]", query[1:])))
    if len(fragment) > 1 and not _ROW.fullmatch(fragment[1:]):
        fragment = f"#{HIDDEN}"
    return path + query + fragment + rest[stop:]


def _without_value(pair: str) -> str:
    name, _, value = pair.partition("=")
    if not pair or HIDDEN in (pair, value):
        return pair
    if not value or not re.fullmatch(r"[\w.\[\]-]{1,64}", name):
        return HIDDEN  # a name without a value may be the credential itself
    return pair if name.lower() in _HARMLESS else f"{name}={HIDDEN}"


def finite(value: Any) -> Any:
    """Return nested values with None for NaN and infinity, which JSON lacks."""
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
