"""Credentials of S3 that are missing, wrong or expired: how they show, and what to set."""

from __future__ import annotations

import errno
import os
from typing import Any

from botocore.exceptions import (  # type: ignore[import-untyped]
    ClientError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
)

# What a server answers in place of an object, and what that means.
_WRONG_KEYS = {
    "InvalidAccessKeyId": "the access key is not known there",
    "SignatureDoesNotMatch": "the secret key is not the access key's",
    "ExpiredToken": "the credentials have expired",
    "ExpiredTokenException": "the credentials have expired",
    "TokenRefreshRequired": "the credentials have expired",
    "InvalidToken": "the session token is not valid",
}
_ABSENT = (NoCredentialsError, PartialCredentialsError, ProfileNotFound)


def wrong_credentials(error: BaseException | None) -> str | None:
    """Why the credentials behind `error` do not do, and what to set; None where they may do.

    `error` is what s3fs or botocore raised. A look-up (HEAD) that is refused says no reason: ask
    by `reason_of_refusal`.
    """
    if isinstance(error, _ABSENT):
        missing = isinstance(error, NoCredentialsError)
        why = "there are no credentials" if missing else " ".join(str(error).split())
        return f"{why}: {_what_to_set()}"
    code = _code(error)
    return f"{_WRONG_KEYS[code]} ({code}): {_what_to_set()}" if code in _WRONG_KEYS else None


def _code(error: BaseException | None) -> str:
    """S3's own word for what was wrong; "" where `error` has none."""
    cause = error if isinstance(error, ClientError) else getattr(error, "__cause__", None)
    response: dict[str, Any] = getattr(cause, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


def _what_to_set() -> str:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    place = "AWS_ENDPOINT_URL (it is not set: Amazon's own S3 is asked)"
    return (
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, and for another service "
        f"than Amazon's {f'AWS_ENDPOINT_URL (now {endpoint})' if endpoint else place}"
    )


def is_refusal(error: BaseException | None) -> bool:
    """Whether a look-up was refused: 403, or 400 as of credentials that expired."""
    bad_request = isinstance(error, OSError) and error.errno == errno.EINVAL
    return isinstance(error, PermissionError) or bad_request


def is_denied(error: BaseException | None) -> bool:
    """Return whether S3 knows the credentials behind `error`, and gives them no such right."""
    return isinstance(error, PermissionError) and wrong_credentials(error) is None


def reason_of_refusal(fs: Any, path: str) -> str | None:
    """What `wrong_credentials` says when the bucket of `path` is listed, whose answer has a body.

    None where the credentials are good, or the answer says nothing of them.
    """
    bucket, key, *_ = fs.split_path(path)
    try:
        fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=key, MaxKeys=1, **fs.req_kw)
    except (*_ABSENT, OSError, ClientError) as error:
        return wrong_credentials(error)
    return None
