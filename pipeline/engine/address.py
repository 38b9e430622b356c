"""State of Ray that is known without importing it: environment variables, whether it runs."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from pipeline.errors import ConfigError
from pipeline.redaction import without_secrets

RAY_LOG = "RESTYLE_RAY_LOG"
_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"


def shows_ray_log() -> bool:
    """Return whether RESTYLE_RAY_LOG asks for the lines that Ray itself prints."""
    return os.environ.get(RAY_LOG, "") not in ("", "0")


def in_cluster() -> bool:
    """Return whether this process is a Ray job, or RAY_ADDRESS names a cluster."""
    return _JOB in os.environ or "RAY_ADDRESS" in os.environ


def running_ray() -> Any:
    """Return the module `ray` if Ray is running in this process, else None.

    An import here could precede `pipeline.engine.cluster`, which sets Ray's environment.
    """
    ray = sys.modules.get("ray")
    return ray if ray is not None and ray.is_initialized() else None


def ray_job() -> dict[str, Any]:
    """Return the config of the Ray job that this process is; {} outside a Ray job."""
    config: dict[str, Any] = json.loads(os.environ.get(_JOB, "{}"))
    return config


def check_address() -> None:
    """Raise `ConfigError` if RAY_ADDRESS is the URL of a dashboard, which only takes jobs."""
    address = os.environ.get("RAY_ADDRESS", "")
    if _JOB not in os.environ and address.startswith("http"):
        raise ConfigError(
            f"RAY_ADDRESS={without_secrets(address)} is a dashboard's URL: submit the job to it "
            "with `ray job submit --working-dir . -- python …`, or unset it to run on this machine"
        )
