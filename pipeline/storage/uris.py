"""From a path or URI to a file system, and from its errors to one line for the user.

Endpoint and credentials come from the environment and the config files of fsspec and of the file
system behind it (for S3: `AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, `~/.aws`, `FSSPEC_S3_...`), never
through this library: what is never passed cannot land in a table or a log. Which profile of those
files a bucket is opened with may be said as well (`profiles`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
from botocore.exceptions import BotoCoreError, ClientError  # type: ignore[import-untyped]
from fsspec import get_filesystem_class
from fsspec.archive import AbstractArchiveFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.chained import ChainedFileSystem
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import (
    AccessError,
    CredentialsExpiredError,
    InputError,
    PipelineError,
    StorageError,
)
from pipeline.redaction import HARMLESS_QUERIES, carries_secrets, known_secrets, without_secrets
from pipeline.storage.credentials import (
    error_code,
    is_bare_refusal,
    is_expired,
    refused_status,
    s3_options,
    wrong_credentials,
)
from pipeline.storage.s3 import is_bucket

# File systems of what lies in another one: `zip://a.jpg::s3://bucket/b.zip`.
_INSIDE_OTHERS = (AbstractArchiveFileSystem, ChainedFileSystem)
# What serves a scheme and is not there by itself, as pip takes it.
_PACKAGES = {
    **dict.fromkeys(("gs", "gcs"), "'restyle-pipeline[gcp]'"),
    **dict.fromkeys(("abfs", "abfss", "az", "adl"), "adlfs"),
    **dict.fromkeys(("sftp", "ssh"), "paramiko"),
    **dict.fromkeys(("webdav", "dav"), "webdav4"),
    **dict.fromkeys(("github", "gist", "webhdfs", "dbfs"), "requests"),
    **{"hf": "huggingface_hub", "smb": "smbprotocol", "oci": "ocifs", "oss": "ossfs"},
    **{"dropbox": "dropboxdrivefs", "box": "boxfs", "gdrive": "gdrive_fs", "tos": "tosfs"},
    **{"lakefs": "lakefs-spec", "wandb": "wandbfs", "git": "pygit2", "dvc": "dvc"},
    **dict.fromkeys(("http", "https"), "aiohttp"),
}
# What raises in file systems of other packages, which need not be installed and have no base.
_FOREIGN = {
    *("gcsfs", "google", "huggingface_hub", "hf_xet", "httpx", "httpx2", "httpcore", "httpcore2"),
    *("requests", "urllib3", "adlfs", "azure"),
}
_UNEXPLAINED = (
    "the storage refuses it and says no reason (400 Bad Request), as for credentials that expired"
)
_WEB_NOT_FOUND, _WEB_DENIED = (404, 410), (401, 403)
_FAILED = (OSError, EOFError, BotoCoreError, ClientError, aiohttp.ClientError)
_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://")


def is_local(uri: str) -> bool:
    """Whether `uri` is a plain path or a `file://` URI."""
    return not _SCHEME.match(uri) or uri.startswith(("file://", "local://"))


def is_web(uri: str) -> bool:
    """Whether `uri` is of the web, whose servers list no folders."""
    return uri.startswith(("http://", "https://"))


def canonical_uri(uri: str) -> str:
    """`uri` without a trailing slash; a local path as an absolute one, so that workers agree on it.

    A local path is without `..`, too: `x/../photos` is the input `photos`, or what lies beside the
    folder that `x` leads to if it is a link. In a bucket `..` is a name like others.

    Raises `InputError` for a URI that carries credentials: it would be written into the table.
    """
    if not uri.strip():
        raise InputError("an empty path or URI was given")
    if "\0" in uri:
        raise InputError(f"'{uri}' holds a null character, which no path does")
    if "://" in uri and carries_secrets(uri):
        scheme = _SCHEME.match(uri)
        raise InputError(
            f"the {scheme[0].removesuffix('://') if scheme else 'given'} URI carries credentials, "
            "or a query or fragment that may be one; give credentials in the environment (e.g. "
            "AWS_ACCESS_KEY_ID) and leave them out of the URI; download what a signed URL names "
            f"(queries that may stay: {', '.join(HARMLESS_QUERIES)})"
        )
    if is_local(uri):
        path = re.sub(r"^(file|local)://", "", uri)
        try:
            return _without_detours(str(Path(path).expanduser().absolute()))
        except RuntimeError as error:
            raise InputError(f"'{path}' names the home of nobody: {one_line(error)}") from error
    return uri.rstrip("/")


def _without_detours(path: str) -> str:
    if ".." not in path.split("/"):
        return path
    plain, real = os.path.normpath(path), os.path.realpath(path)
    return plain if os.path.realpath(plain) == real else real


def join(uri: str, name: str) -> str:
    """`name`, a relative path with forward slashes, below `uri`."""
    return f"{uri.rstrip('/')}/{name}" if name else uri


def filesystem(uri: str, *, versions: bool = False) -> tuple[Any, str]:
    """The fsspec file system of `uri` and the path on it; listings are never cached.

    A cached listing would hide what another node wrote. With `versions`, S3's `?versionId=` is no
    part of a name but says which version is read. Raises `InputError` for a scheme that no
    installed package serves, and says what to install where that is known.
    """
    try:
        with storage_errors(f"open '{uri}'"):
            kind = _kind_of(uri, versions)
            if issubclass(kind, _INSIDE_OTHERS):
                outer = {"s3": s3_options(uri.rpartition("::")[2])}
                fs, path = url_to_fs(uri, use_listings_cache=False, **outer)
            else:  # `url_to_fs` would take `a::b` for a `b` inside which there is an `a`
                own = {**kind._get_kwargs_from_urls(uri), **s3_options(uri)}
                fs = kind(**own, use_listings_cache=False)
                path = fs._strip_protocol(uri)
    except ImportError as error:
        package = _PACKAGES.get(uri.split("://")[0])
        how = f": pip install {package}" if package else ""
        raise InputError(f"cannot open '{uri}': {one_line(error)}{how}") from error
    except (ValueError, TypeError) as error:  # no such protocol; settings that it cannot do without
        raise InputError(f"cannot open '{uri}': {one_line(error)}") from error
    return fs, str(path)


def _kind_of(uri: str, versions: bool) -> Any:
    scheme = _SCHEME.match(uri)
    protocol = scheme[0].removesuffix("://") if scheme else "file"
    if protocol in ("s3", "s3a"):
        from pipeline.storage.s3_filesystem import ExplainedS3, KeyedS3  # its import takes 0.3 s

        return ExplainedS3 if versions else KeyedS3
    return get_filesystem_class(protocol)


def is_local_filesystem(fs: Any) -> bool:
    """Whether `fs` is this machine's disk."""
    return isinstance(fs, LocalFileSystem)


@contextmanager
def storage_errors(action: str) -> Iterator[None]:
    """Turn every failure of a file system into a `StorageError`: "cannot <action>: why".

    An `AccessError` where credentials are missing or wrong, or rights are; where they have expired
    a `CredentialsExpiredError`.
    """
    try:
        yield
    except FileNotFoundError as error:
        if web := _answer_of_web(action, error.__cause__):
            raise web from error.__cause__
        raise StorageError(f"cannot {action}: not found") from error
    except PermissionError as error:
        raise _access_error(action, wrong_credentials(error) or _denied(error), error) from error
    except NotImplementedError as error:
        raise StorageError(f"cannot {action}: this kind of storage does not do that") from error
    except PipelineError:
        raise
    except Exception as error:
        if wrong := wrong_credentials(error) or _refusal_elsewhere(error):
            raise _access_error(action, wrong, error) from error
        if isinstance(error, _FAILED):
            why = _UNEXPLAINED if is_bare_refusal(error) else one_line(error)
            raise StorageError(f"cannot {action}: {why}") from error
        if not _is_foreign(error):
            raise
        kind = InputError if isinstance(error, ValueError) else StorageError
        raise kind(f"cannot {action}: {one_line(error)}") from error


def _access_error(action: str, why: str, error: BaseException) -> AccessError:
    kind = CredentialsExpiredError if is_expired(error) else AccessError
    return kind(f"cannot {action}: {without_secrets(why)}")


def _refusal_elsewhere(error: Exception) -> str | None:
    """What the driver of another service than S3 says of credentials that it refuses."""
    why = refused_status(error) if _is_foreign(error) else None
    return why and f"{why} ({one_line(error)}): set the credentials of this service"


def _denied(error: PermissionError) -> str:
    if error.filename:  # of a file on a disk
        return "access denied"
    if error_code(error) == "AccessDenied":
        return (
            "access denied (AccessDenied): the credentials have no right to it; of a bucket whose "
            "reader pays, set FSSPEC_S3_REQUESTER_PAYS=true"
        )
    return "access denied (are the credentials right?)"


def _answer_of_web(action: str, error: BaseException | None) -> StorageError | None:
    """What a web server said, or that none did: fsspec calls each of these "not found"."""
    if isinstance(error, aiohttp.ClientResponseError):
        if error.status in _WEB_NOT_FOUND:
            return None
        kind = AccessError if error.status in _WEB_DENIED else StorageError
        return kind(f"cannot {action}: the server answers {error.status} {error.message}")
    if isinstance(error, aiohttp.ClientError | TimeoutError):
        return StorageError(f"cannot {action}: {one_line(error)}")
    return None


def _is_foreign(error: Exception) -> bool:
    """Whether `error` is of a package in `_FOREIGN`, by its type or by what raised it."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    raised_in = place.tb_frame.f_globals.get("__name__", "") if place else ""
    return not _FOREIGN.isdisjoint(
        name.split(".")[0] for name in (type(error).__module__, str(raised_in))
    )


def check_credentials(uri: str) -> None:
    """Raise `AccessError` where S3's credentials for `uri` are missing, wrong or expired.

    One request, and another one where it is refused. Rights and what is there are not looked at.
    """
    fs, path = filesystem(uri)
    if not is_bucket(fs):
        return
    try:
        fs.info(path)
        return
    except FileNotFoundError:
        return
    except (OSError, RuntimeError, BotoCoreError, ClientError, aiohttp.ClientError) as error:
        why = wrong_credentials(error)
        if why:
            raise _access_error(f"open '{uri}'", why, error) from error


def _streamed(uri: str) -> dict[str, int]:
    """How a file on the web is opened to be read once, also if the server gives no ranges."""
    return {"block_size": 0} if is_web(uri) else {}


def read_file(uri: str, at_most: int = -1) -> bytes:
    """The file at `uri`, a path or any fsspec URI; of a longer one the first `at_most` bytes.

    Of an object in S3 the version that a `?versionId=` behind its key names.

    Raises `InputError` as `canonical_uri` and `filesystem` do, and `StorageError` where it cannot
    be read to its end, caused by `FileNotFoundError` where there is none.
    """
    whole = canonical_uri(uri)
    fs, path = filesystem(whole, versions=True)
    with storage_errors(f"read '{whole}'"), fs.open(path, "rb", **_streamed(whole)) as file:
        return bytes(file.read(at_most))


def one_line(error: BaseException) -> str:
    """The text of `error` in one line, with every secret of this process blanked out."""
    # Blanked out first: a credential may have several lines.
    return " ".join(without_secrets(str(error)).split()) or type(error).__name__


def refuse_secrets(what: str, *texts: str, secrets: Mapping[str, str] | None = None) -> None:
    """Raise `InputError` where a text that a table is to hold contains a credential's value.

    Blanked out there it would be compared with itself in the clear by the next run, and found to
    be another. `secrets` are those of `known_secrets`, for a caller that asks often.
    """
    for secret, place in (known_secrets() if secrets is None else secrets).items():
        if any(secret in text for text in texts):
            raise InputError(
                f"{what} contains the value of {place}, which is blanked out wherever it is "
                "written: rename the one or change the other"
            )
