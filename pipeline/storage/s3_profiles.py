"""Which AWS profile reads and writes which bucket, where one set of credentials does not do.

`RESTYLE_S3_PROFILES` names them: `s3://photos=reader s3://results/tables=writer`. A URI is opened
with the profile of the longest prefix that it lies below, any other with the credentials of the
environment. A profile's name is no secret; keys stay in the AWS configuration files of each node.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from pipeline.errors import AccessError, InputError

S3_PROFILES = "RESTYLE_S3_PROFILES"
_SCHEMES = ("s3://", "s3a://")
_FILES = ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE")


def s3_options(uri: str) -> dict[str, Any]:
    """Return the settings of s3fs for `uri`; empty where the environment decides.

    A profile's endpoint and region come before those of the environment. One with the line
    `anonymous = true` signs nothing. Raises `InputError` where the variable cannot be read, and
    `AccessError` where no file has the profile.
    """
    name = _profile_of(uri)
    return {} if name is None else {**_options(name, *map(os.environ.get, _FILES))}


def _profile_of(uri: str) -> str | None:
    path = _without_scheme(uri)
    if path is None:
        return None
    below = [prefix for prefix in _profiles() if f"{path}/".startswith(f"{prefix}/")]
    return _profiles()[max(below, key=len)] if below else None


def _profiles() -> Mapping[str, str]:
    return _parsed(os.environ.get(S3_PROFILES, ""))


@lru_cache(maxsize=8)
def _parsed(text: str) -> Mapping[str, str]:
    """Bucket or path -> profile."""
    found = {}
    for pair in text.split():
        uri, _, profile = pair.rpartition("=")
        path = _without_scheme(uri)
        if not path or not profile:
            raise InputError(
                f"{S3_PROFILES}: '{pair}' is not of the form s3://BUCKET=PROFILE or "
                "s3://BUCKET/FOLDER=PROFILE; several are separated by spaces"
            )
        found[path] = profile
    return found


def _without_scheme(uri: str) -> str | None:
    for scheme in _SCHEMES:
        if uri.startswith(scheme):
            return uri.removeprefix(scheme).rstrip("/")
    return None


@lru_cache(maxsize=32)
def _options(name: str, *files: str | None) -> Mapping[str, Any]:
    """The settings of a profile that stands in `files`, or in their usual places for None."""
    del files  # which botocore finds by the environment; here they tell configurations apart
    from botocore.session import Session  # type: ignore[import-untyped]

    found = Session().full_config
    profile = found.get("profiles", {}).get(name)
    if profile is None:
        raise AccessError(
            f"{S3_PROFILES} names the profile '{name}', which is not in the AWS configuration "
            "files of this machine (~/.aws/config, ~/.aws/credentials, or AWS_CONFIG_FILE, "
            "AWS_SHARED_CREDENTIALS_FILE)"
        )
    # Those of fsspec's own configuration belong to other buckets.
    options: dict[str, Any] = {"profile": name, "key": None, "secret": None, "token": None}
    options["anon"] = str(profile.get("anonymous", "")).lower() == "true"
    service = found.get("services", {}).get(profile.get("services"), {}).get("s3", {})
    if endpoint := service.get("endpoint_url") or profile.get("endpoint_url"):
        options["endpoint_url"] = endpoint
    if region := profile.get("region"):
        options["client_kwargs"] = {"region_name": region}
    return options
