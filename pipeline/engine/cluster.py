"""Where the work runs: a Ray of its own on this machine, or the cluster that the job is in."""

from __future__ import annotations

import logging
import os
import secrets
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

# Set before ray is imported: these are read at import and inherited by the workers.
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Ray's C++ side prints an error line for every pool of actors, about nothing.
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    # Spinning OpenMP threads on shared cores cost an inverter thirty times its own work.
    "OMP_WAIT_POLICY": "passive",
    # glibc gives a layer's freed buffers back to the kernel and faults them in again otherwise.
    "MALLOC_TOP_PAD_": str(512 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(8 << 30),
    "MALLOC_MMAP_THRESHOLD_": str(8 << 30),
}


def in_cluster() -> bool:
    """Whether this process was started as a Ray job, or told of a cluster by RAY_ADDRESS."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ or "RAY_ADDRESS" in os.environ


def _prepare_environment() -> None:
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if not in_cluster() and os.environ.setdefault("RAY_AUTH_MODE", "token") == "token":
        # Without a token of its own, Ray saves one in the user's home, where later tools find it
        # and refuse to work without it.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(16))


_prepare_environment()

import ray  # noqa: E402 - after its environment


@dataclass(frozen=True)
class Resources:
    """What the cluster offers in all; `cpus` and `gpus` as Ray counts them."""

    cpus: float
    gpus: float


def _start_local() -> None:
    ray.init(
        address="local",
        # The stages take turns, so their pools may overlap: aligners and inverters, a core each.
        num_cpus=2 * (os.cpu_count() or 1) + 1,
        include_dashboard=False,
        logging_level=logging.ERROR,
        log_to_driver=False,
    )


@contextmanager
def running_ray() -> Iterator[Resources]:
    """Join the job's cluster, or start a quiet local Ray, for the length of the block."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        if in_cluster():
            ray.init(address="auto", logging_level=logging.ERROR, log_to_driver=False)
        else:
            _start_local()
    try:
        offered = ray.cluster_resources()
        yield Resources(cpus=offered.get("CPU", 1.0), gpus=offered.get("GPU", 0.0))
    finally:
        ray.shutdown()
