"""Open the file system of a path or URI, and turn its errors into one line for the user.

Endpoint and credentials come from the environment and from the configuration files of fsspec and
of the file system behind it (for S3: `AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, `~/.aws`,
`FSSPEC_S3_...`). They are never parameters of this library, so that none can end up in a table or a
log. The profile of a bucket can be chosen with `RESTYLE_S3_PROFILES` (`credentials`).
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
    MissingError,
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

# File systems inside another file: `zip://a.jpg::s3://bucket/b.zip`.
_INSIDE_OTHERS = (AbstractArchiveFileSystem, ChainedFileSystem)
# Scheme -> package to install for it, as pip takes it.
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
# Packages whose errors have no base class in common, and which need not be installed.
_FOREIGN = {
    *("gcsfs", "google", "huggingface_hub", "hf_xet", "httpx", "httpx2", "httpcore", "httpcore2"),
    *("requests", "urllib3", "adlfs", "azure"),
}
_UNEXPLAINED = (
    "the storage refuses the request without a reason (400 Bad Request); credentials may have "
    "expired"
)
_WEB_NOT_FOUND, _WEB_DENIED = (404, 410), (401, 403)
_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://")


def _request_errors(*others: type[Exception]) -> tuple[type[Exception], ...]:
    """Return `others` and the base classes of errors of a request to a server.

    aiohttp takes 0.1 s to import, in each of a job's processes: its errors exist only where a file
    system has imported it.
    """
    aiohttp = sys.modules.get("aiohttp")
    return (*others, BotoCoreError, ClientError, *([aiohttp.ClientError] if aiohttp else []))


def is_local(uri: str) -> bool:
    """Return whether `uri` is a plain path or a `file://` URI."""
    return not _SCHEME.match(uri) or uri.startswith(("file://", "local://"))


def is_web(uri: str) -> bool:
    """Return whether `uri` is a web address, whose server cannot list folders."""
    return uri.startswith(("http://", "https://"))


def canonical_uri(uri: str) -> str:
    """Return `uri` without a trailing slash; a local path becomes absolute.

    `..` in a local path is resolved as the disk does: `x/../photos` is `photos`, unless `x` is a
    link. In a bucket `..` is a name like others.

    Raises `InputError` for an empty URI and for one that carries credentials, as it would be
    written into the table.
    """
    if not uri.strip():
        raise InputError("an empty path or URI was given")
    if "\0" in uri:
        raise InputError(f"'{uri}' holds a null character, which a path cannot have")
    if "://" in uri and carries_secrets(uri):
        scheme = _SCHEME.match(uri)
        raise InputError(
            f"the {scheme[0].removesuffix('://') if scheme else 'given'} URI carries credentials, "
            "or a query or fragment that may be one; give credentials in the environment (e.g. "
            "AWS_ACCESS_KEY_ID) and leave them out of the URI; download the file of a signed URL "
            f"(queries that may stay: {', '.join(HARMLESS_QUERIES)})"
        )
    if is_local(uri):
        path = re.sub(r"^(file|local)://", "", uri)
        try:
            return _resolve_dots(str(Path(path).expanduser().absolute()))
        except RuntimeError as error:
            raise InputError(f"'{path}': unknown user ({one_line(error)})") from error
    return uri.rstrip("/")


def _resolve_dots(path: str) -> str:
    if ".." not in path.split("/"):
        return path
    plain, real = os.path.normpath(path), os.path.realpath(path)
    return plain if os.path.realpath(plain) == real else real


def join(uri: str, name: str) -> str:
    """Return the URI of `name`, a relative path with forward slashes, below `uri`."""
    return f"{uri.rstrip('/')}/{name}" if name else uri


def filesystem(uri: str, *, versions: bool = False) -> tuple[Any, str]:
    """Return the fsspec file system of `uri` and the path on it.

    Listings are never cached: a cached one would hide what another node wrote. With `versions`,
    S3's `?versionId=` selects a version instead of being part of the name. Raises `InputError` for
    a scheme that no installed package serves, with the package to install if it is known.
    """
    try:
        with storage_errors(f"open '{uri}'"):
            kind = _kind_of(uri, versions)
            if issubclass(kind, _INSIDE_OTHERS):
                outer = {"s3": s3_options(uri.rpartition("::")[2])}
                fs, path = url_to_fs(uri, use_listings_cache=False, **outer)
            else:  # `url_to_fs` would read `a::b` as `a` inside `b`
                own = {**kind._get_kwargs_from_urls(uri), **s3_options(uri)}
                fs = kind(**own, use_listings_cache=False)
                path = fs._strip_protocol(uri)
    except ImportError as error:
        package = _PACKAGES.get(uri.split("://")[0])
        how = f": pip install {package}" if package else ""
        raise InputError(f"cannot open '{uri}': {one_line(error)}{how}") from error
    except (ValueError, TypeError) as error:  # unknown protocol, or missing settings
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
    """Return whether `fs` is a disk of this machine."""
    return isinstance(fs, LocalFileSystem)


@contextmanager
def storage_errors(action: str) -> Iterator[None]:
    """Turn every failure of a file system into a `StorageError`: "cannot <action>: <why>".

    Raises `MissingError` if nothing is there, `AccessError` if credentials are missing or wrong, or
    rights are missing, and `CredentialsExpiredError` if they have expired.
    """
    try:
        yield
    except FileNotFoundError as error:
        if web := _web_error(action, error.__cause__):
            raise web from error.__cause__
        raise MissingError(f"cannot {action}: not found") from error
    except PermissionError as error:
        raise _access_error(action, wrong_credentials(error) or _denied(error), error) from error
    except NotImplementedError as error:
        raise StorageError(f"cannot {action}: this kind of storage does not support it") from error
    except PipelineError:
        raise
    except Exception as error:
        if wrong := wrong_credentials(error) or _foreign_refusal(error):
            raise _access_error(action, wrong, error) from error
        if isinstance(error, _request_errors(OSError, EOFError)):
            why = _UNEXPLAINED if is_bare_refusal(error) else one_line(error)
            raise StorageError(f"cannot {action}: {why}") from error
        if not _is_foreign(error):
            raise
        kind = InputError if isinstance(error, ValueError) else StorageError
        raise kind(f"cannot {action}: {one_line(error)}") from error


def _access_error(action: str, why: str, error: BaseException) -> AccessError:
    kind = CredentialsExpiredError if is_expired(error) else AccessError
    return kind(f"cannot {action}: {without_secrets(why)}")


def _foreign_refusal(error: Exception) -> str | None:
    """Return the message for credentials that a service other than S3 refuses."""
    why = refused_status(error) if _is_foreign(error) else None
    return why and f"{why} ({one_line(error)}): set the credentials of this service"


def _denied(error: PermissionError) -> str:
    if error.filename:  # of a file on a disk
        return "access denied"
    if error_code(error) == "AccessDenied":
        return (
            "access denied (AccessDenied): the credentials have no right to it; for a bucket whose "
            "reader pays, set FSSPEC_S3_REQUESTER_PAYS=true"
        )
    return "access denied (are the credentials right?)"


def _web_error(action: str, error: BaseException | None) -> StorageError | None:
    """Return the error behind fsspec's "not found" of a web address, None if it is that.

    fsspec reports every HTTP status and every failed connection as "not found".
    """
    if error is None:
        return None
    import aiohttp

    if isinstance(error, aiohttp.ClientResponseError):
        if error.status in _WEB_NOT_FOUND:
            return None
        kind = AccessError if error.status in _WEB_DENIED else StorageError
        return kind(f"cannot {action}: the server answers {error.status} {error.message}")
    if isinstance(error, aiohttp.ClientError | TimeoutError):
        return StorageError(f"cannot {action}: {one_line(error)}")
    return None


def _is_foreign(error: Exception) -> bool:
    """Return whether a package in `_FOREIGN` defined or raised `error`."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    raised_in = frame.tb_frame.f_globals.get("__name__", "") if frame else ""
    return not _FOREIGN.isdisjoint(
        name.split(".")[0] for name in (type(error).__module__, str(raised_in))
    )


def check_credentials(uri: str) -> None:
    """Raise `AccessError` if S3's credentials for `uri` are missing, wrong or expired.

    Costs one request, and another one if it is refused. Rights are not checked, nor that `uri`
    exists.
    """
    fs, path = filesystem(uri)
    if not is_bucket(fs):
        return
    try:
        fs.info(path)
    except _request_errors(OSError, RuntimeError) as error:
        if why := wrong_credentials(error):
            raise _access_error(f"open '{uri}'", why, error) from error


def read_file(uri: str, at_most: int = -1) -> bytes:
    """Read the file at `uri`, a path or fsspec URI; at most its first `at_most` bytes.

    A `?versionId=` behind the key of an S3 object selects a version.

    Raises the `InputError` of `canonical_uri` and `filesystem`, and `StorageError` if the file
    cannot be read, `MissingError` if it does not exist.
    """
    whole = canonical_uri(uri)
    fs, path = filesystem(whole, versions=True)
    options = {"block_size": 0} if is_web(whole) else {}  # a web server may give no ranges
    with storage_errors(f"read '{whole}'"), fs.open(path, "rb", **options) as file:
        return bytes(file.read(at_most))


def read_bounded(uri: str, most: int, *, missing: str, large: str) -> bytes:
    """Read a file of at most `most` bytes that a user names.

    Raises like `read_file`, and `InputError` with the text `missing` or `large`.
    """
    try:
        content = read_file(uri, most + 1)
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError | IsADirectoryError):
            raise InputError(missing) from error
        raise
    if len(content) > most:
        raise InputError(large)
    return content


def one_line(error: BaseException) -> str:
    """Return the text of `error` in one line, with every secret of this process blanked out."""
    # Secrets are blanked out before lines are joined: a credential may have several lines.
    return " ".join(without_secrets(str(error)).split()) or type(error).__name__


def refuse_secrets(what: str, *texts: str, secrets: Mapping[str, str] | None = None) -> None:
    """Raise `InputError` if a text that the table will store contains the value of a credential.

    The table would store it blanked out, and the next run would not recognise it. `what` names the
    texts in the message. `secrets` is the result of `known_secrets`, for callers in a loop.
    """
    for secret, place in (known_secrets() if secrets is None else secrets).items():
        if any(secret in text for text in texts):
            raise InputError(
                f"{what} contains the value of {place}, which is blanked out wherever it is "
                "written: use another name or change the secret"
            )
