"""Credentials of S3 that are missing, wrong or expired: how they show, and what to do."""

from __future__ import annotations

import os
from typing import Any

from botocore.exceptions import (  # type: ignore[import-untyped]
    ClientError,
    ConfigParseError,
    CredentialRetrievalError,
    InvalidConfigError,
    LoginError,
    MetadataRetrievalError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    SSOError,
    TokenRetrievalError,
    UnknownCredentialError,
)

from pipeline.storage.s3_profiles import S3_PROFILES

# Part of each message about credentials that were good and are not any more.
CREDENTIALS_EXPIRED = "credentials expired"
_EXPIRED_CODES = frozenset(
    ("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired")
)
_WRONG_KEYS = {
    "InvalidAccessKeyId": "the access key is not known there",
    "InvalidClientTokenId": "the access key is not known there",
    "SignatureDoesNotMatch": "the secret key is not the access key's",
    "InvalidToken": "the session token is not valid",
    "InvalidSecurity": "the credentials are not valid",
}
_SKEWED_CLOCK = "RequestTimeTooSkewed"
_EXPIRED_ERRORS = (SSOError, LoginError, TokenRetrievalError)
_UNUSABLE_ERRORS = (
    *(PartialCredentialsError, ProfileNotFound, CredentialRetrievalError, ConfigParseError),
    *(InvalidConfigError, MetadataRetrievalError, UnknownCredentialError),
)
# botocore raises a plain `RuntimeError` with this text.
_STILL_EXPIRED = "refreshed credentials are still expired"
# In place of a code, botocore gives the status of an answer without a body.
_BARE_REFUSALS = frozenset(("400", "403"))
_HOW_TO_RENEW = (
    "get new ones (`aws sso login`, or new keys with their AWS_SESSION_TOKEN) and run again: what "
    "is finished is kept"
)


def wrong_credentials(error: BaseException | None) -> str | None:
    """Return why the credentials behind `error` are refused, and what to do; None for other errors.

    `error` is one of botocore, or one that s3fs made of it.
    """
    if is_expired(error):
        code = error_code(error)
        return f"{CREDENTIALS_EXPIRED}{f' ({code})' if code else ''}: {_HOW_TO_RENEW}"
    if isinstance(error, NoCredentialsError):
        return f"there are no credentials: {_what_to_set()}"
    if isinstance(error, _UNUSABLE_ERRORS):
        return f"{' '.join(str(error).split())}: {_what_to_set()}"
    code = error_code(error)
    if code == _SKEWED_CLOCK:
        return f"the clock of this machine is wrong ({code}): set it, by NTP, and run again"
    return f"{_WRONG_KEYS[code]} ({code}): {_what_to_set()}" if code in _WRONG_KEYS else None


def is_expired(error: BaseException | None) -> bool:
    """Return whether `error` says that credentials were good and have expired."""
    if isinstance(error, RuntimeError):
        return _STILL_EXPIRED in str(error)
    return isinstance(error, _EXPIRED_ERRORS) or error_code(error) in _EXPIRED_CODES


def is_bare_refusal(error: BaseException | None) -> bool:
    """Return whether S3 refused without saying why: 400 or 403 without a body, as HEAD gets it."""
    return error_code(error) in _BARE_REFUSALS


def error_code(error: BaseException | None) -> str:
    """Return S3's own code of an error, such as `ExpiredToken`; "" where `error` has none."""
    cause = error if isinstance(error, ClientError) else getattr(error, "__cause__", None)
    response: Any = getattr(cause, "response", None)
    if not isinstance(response, dict):  # other packages' errors have a response of another kind
        return ""
    return str(response.get("Error", {}).get("Code", ""))


def refused_status(error: BaseException) -> str | None:
    """Return what another service's driver says of credentials that are refused; None otherwise.

    Drivers have no base in common: their errors carry an HTTP status, of the error or its response,
    or come from `google.auth`, which raises for credentials alone.
    """
    if type(error).__module__.startswith("google.auth."):
        return "there are no credentials, or they cannot be renewed"
    status = getattr(getattr(error, "response", None), "status_code", None)
    for code in (getattr(error, "code", None), getattr(error, "status_code", None), status):
        if code in (401, 403):
            return f"the server answers {code}: access denied"
    return None


def _what_to_set() -> str:
    if os.environ.get(S3_PROFILES):
        return f"see to the keys in the environment, or of the profile that {S3_PROFILES} names"
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    place = "AWS_ENDPOINT_URL (it is not set: Amazon's own S3 is asked)"
    return (
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, and for another service "
        f"than Amazon's {f'AWS_ENDPOINT_URL (now {endpoint})' if endpoint else place}"
    )


def is_denied(error: BaseException | None) -> bool:
    """Return whether S3 knows the credentials behind `error`, and gives them no such right."""
    return isinstance(error, PermissionError) and wrong_credentials(error) is None
