"""What the environment says of Ray, read before Ray is imported: a cluster, and its own lines."""

from __future__ import annotations

import os

from pipeline.errors import ConfigError
from pipeline.redaction import without_secrets

RAY_LOG = "RESTYLE_RAY_LOG"


def shows_ray_log() -> bool:
    """Return whether the user asked for the lines that Ray itself prints."""
    return os.environ.get(RAY_LOG, "") not in ("", "0")


def in_cluster() -> bool:
    """Whether this process was started as a Ray job, or told of a cluster by RAY_ADDRESS."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ or "RAY_ADDRESS" in os.environ


def check_address() -> None:
    """Raise `ConfigError` where RAY_ADDRESS is a dashboard's: it takes jobs, and is no cluster."""
    address = os.environ.get("RAY_ADDRESS", "")
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ and address.startswith("http"):
        raise ConfigError(
            f"RAY_ADDRESS={without_secrets(address)} is a dashboard: send the job there with "
            "`ray job submit --working-dir . -- python …`, or unset it to run on this machine"
        )
