"""S3 credentials: the profile of each bucket, and errors of missing, wrong or expired keys.

`RESTYLE_S3_PROFILES` names a profile for each bucket or folder that needs other credentials than
the environment's: `s3://photos=reader s3://results/tables=writer`. A URI is opened with the profile
of the longest prefix that contains it. The name of a profile is not secret; keys stay in the AWS
configuration files of each node.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache
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

from pipeline.errors import AccessError, InputError

S3_PROFILES = "RESTYLE_S3_PROFILES"
_SCHEMES = ("s3://", "s3a://")
_FILES = ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE")
# Part of every message about expired credentials.
CREDENTIALS_EXPIRED = "credentials expired"
_EXPIRED_CODES = frozenset(
    ("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired")
)
_WRONG_KEYS = {
    "InvalidAccessKeyId": "the access key is not known there",
    "InvalidClientTokenId": "the access key is not known there",
    "SignatureDoesNotMatch": "the secret key does not belong to the access key",
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
# For an answer without a body, botocore gives the HTTP status instead of a code.
_BARE_REFUSALS = frozenset(("400", "403"))
_HOW_TO_RENEW = (
    "get new ones (`aws sso login`, or new keys with their AWS_SESSION_TOKEN) and run again: "
    "finished work is kept"
)


def s3_options(uri: str) -> dict[str, Any]:
    """Return the settings of s3fs for `uri`; empty if no profile is named for it.

    A profile's endpoint and region override those of the environment. With the line
    `anonymous = true` requests are not signed. Raises `InputError` if the variable is malformed,
    and `AccessError` if the profile is in no configuration file.
    """
    path = _without_scheme(uri)
    if path is None:
        return {}
    profiles = _parse_profiles(os.environ.get(S3_PROFILES, ""))
    around = [prefix for prefix in profiles if f"{path}/".startswith(f"{prefix}/")]
    if not around:
        return {}
    return {**_options(profiles[max(around, key=len)], *map(os.environ.get, _FILES))}


@lru_cache(maxsize=8)
def _parse_profiles(text: str) -> Mapping[str, str]:
    """Parse `RESTYLE_S3_PROFILES` into a mapping from bucket or path to profile."""
    profiles = {}
    for pair in text.split():
        uri, _, profile = pair.rpartition("=")
        path = _without_scheme(uri)
        if not path or not profile:
            raise InputError(
                f"{S3_PROFILES}: '{pair}' is not of the form s3://BUCKET=PROFILE or "
                "s3://BUCKET/FOLDER=PROFILE; separate several by spaces"
            )
        profiles[path] = profile
    return profiles


def _without_scheme(uri: str) -> str | None:
    for scheme in _SCHEMES:
        if uri.startswith(scheme):
            return uri.removeprefix(scheme).rstrip("/")
    return None


@lru_cache(maxsize=32)
def _options(name: str, *files: str | None) -> Mapping[str, Any]:
    """Return the settings of the profile `name`.

    `files` are the values of the variables in `_FILES`, which botocore reads by itself; here they
    are only part of the cache key.
    """
    del files
    from botocore.session import Session  # type: ignore[import-untyped]

    config = Session().full_config
    profile = config.get("profiles", {}).get(name)
    if profile is None:
        raise AccessError(
            f"{S3_PROFILES} names the profile '{name}', which is not in the AWS configuration "
            "files of this machine (~/.aws/config, ~/.aws/credentials, or AWS_CONFIG_FILE, "
            "AWS_SHARED_CREDENTIALS_FILE)"
        )
    # None overrides keys in fsspec's own configuration, which belong to other buckets.
    options: dict[str, Any] = {"profile": name, "key": None, "secret": None, "token": None}
    options["anon"] = str(profile.get("anonymous", "")).lower() == "true"
    service = config.get("services", {}).get(profile.get("services"), {}).get("s3", {})
    if endpoint := service.get("endpoint_url") or profile.get("endpoint_url"):
        options["endpoint_url"] = endpoint
    if region := profile.get("region"):
        options["client_kwargs"] = {"region_name": region}
    return options


def wrong_credentials(error: BaseException | None) -> str | None:
    """Return why S3 refuses the credentials behind `error`, and what to do; None for other errors.

    `error` comes from botocore, directly or translated by s3fs.
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
    """Return whether `error` says that credentials have expired."""
    if isinstance(error, RuntimeError):
        return _STILL_EXPIRED in str(error)
    return isinstance(error, _EXPIRED_ERRORS) or error_code(error) in _EXPIRED_CODES


def is_bare_refusal(error: BaseException | None) -> bool:
    """Return whether S3 gave no reason: 400 or 403 without a body, as in an answer to HEAD."""
    return error_code(error) in _BARE_REFUSALS


def error_code(error: BaseException | None) -> str:
    """Return S3's error code, such as `ExpiredToken`; "" if `error` has none."""
    cause = error if isinstance(error, ClientError) else getattr(error, "__cause__", None)
    response: Any = getattr(cause, "response", None)
    if not isinstance(response, dict):  # errors of other packages have another kind of response
        return ""
    return str(response.get("Error", {}).get("Code", ""))


def refused_status(error: BaseException) -> str | None:
    """Return how the driver of another service reports refused credentials; None for other errors.

    Drivers share no base class: their errors, or the responses in them, carry an HTTP status, or
    they come from `google.auth`, which only raises for credentials.
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
        return f"check the keys in the environment, or in the profile that {S3_PROFILES} names"
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    place = "AWS_ENDPOINT_URL (it is not set: Amazon's own S3 is used)"
    return (
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, and for a service other "
        f"than Amazon's {f'AWS_ENDPOINT_URL (now {endpoint})' if endpoint else place}"
    )


def is_denied(error: BaseException | None) -> bool:
    """Return whether S3 accepts the credentials behind `error` but denies them this request."""
    return isinstance(error, PermissionError) and wrong_credentials(error) is None
