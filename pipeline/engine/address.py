"""Whether a job runs on this machine or on a cluster; asked before Ray is imported."""

from __future__ import annotations

import os

from pipeline.errors import ConfigError
from pipeline.redaction import without_secrets


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
