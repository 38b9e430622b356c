"""Ray session of a job: a private Ray on this machine, or the cluster that the job belongs to."""

from __future__ import annotations

import logging
import os
import re
import secrets
import sys
import threading
import traceback
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.engine.address import check_address, in_cluster, ray_job, shows_ray_log
from pipeline.engine.console.progress import enter_phase
from pipeline.engine.private_folder import make_private_folder, remove_private_folder
from pipeline.errors import ConfigError
from pipeline.machine import has_gpu_device, whole_cpus
from pipeline.redaction import without_secrets
from pipeline.signals import undisturbed
from pipeline.storage import S3_PROFILES

# Set before ray is imported: it reads them at import, and the workers inherit them.
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Ray's C++ side prints a harmless error line for every actor pool.
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    # Spinning OpenMP threads on shared cores cost an inverter thirty times its own work.
    "OMP_WAIT_POLICY": "passive",
}


def _prepare_environment() -> None:
    for name, value in QUIET.items():
        if name == "RAY_BACKEND_LOG_LEVEL" and shows_ray_log():
            continue
        os.environ.setdefault(name, value)
    if not in_cluster() and os.environ.setdefault("RAY_AUTH_MODE", "token") == "token":
        # Without a given token Ray saves one in the user's home directory, and later Ray commands
        # of this user then require it.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(16))


_prepare_environment()

import ray  # noqa: E402 - after its environment

from pipeline.engine.ray_callbacks import (  # noqa: E402
    loopback_only,
    ray_lines_in_file,
    ray_without_signal_handlers,
    without_unused_processes,
)

START_TRIES = 4
START_TIMED_OUT = "timed out during startup"


class Node(NamedTuple):
    """A node of the cluster."""

    node_id: str
    resources: Mapping[str, float]  # as Ray names them


@dataclass(frozen=True)
class Resources:
    """Total resources of the cluster; `cpus` and `gpus` as Ray counts them."""

    cpus: float
    gpus: float
    nodes: tuple[Node, ...] = ()  # alive
    grows: bool = False  # whether an autoscaler may start more nodes
    folder: Path | None = None  # private to this run; None if Ray uses a folder of others

    def on_gpu(self, device: str) -> bool:
        """Return whether work on `device` (auto, cpu or cuda) gets a GPU."""
        return device == "cuda" or (device == "auto" and self.gpus > 0)

    def without(self, unused: Collection[str]) -> Resources:
        """Return the resources of the nodes whose ids are not in `unused`."""
        left = tuple(node for node in self.nodes if node.node_id not in unused)
        gone = [node.resources for node in self.nodes if node.node_id in unused]
        cpus, gpus = (sum(node.get(name, 0.0) for node in gone) for name in ("CPU", "GPU"))
        return replace(self, cpus=self.cpus - cpus, gpus=self.gpus - gpus, nodes=left)


def summarize_error(error: Exception) -> str:
    """Summarize an error of Ray or of a worker as `Type: last line of its message`.

    The message of a remote error is a traceback, whose last line is the error itself.
    """
    # Remove secrets before cutting: a credential may span several lines.
    lines = without_secrets(str(error)).strip().splitlines()
    last = [line for line in lines if any(map(str.isalnum, line))][-1:]
    return ": ".join([type(error).__name__, *map(str.strip, last)])


def _local_gpus() -> int:
    """Return the number of GPUs that PyTorch can use; Ray also counts those that it cannot.

    PyTorch takes a second to import, which a machine without a GPU does not wait for.
    """
    if not has_gpu_device():
        return 0
    import torch

    return torch.cuda.device_count()


def _start_local(gpus: int | None, folder: Path | None) -> None:
    """Start Ray with retries: on a busy machine or a cold disk its agent may take longer than 15 s,
    a limit that cannot be configured."""
    gpus = _local_gpus() if gpus is None else gpus
    for tries_left in reversed(range(START_TRIES)):
        try:
            with loopback_only(), without_unused_processes():
                ray.init(
                    address="local",
                    num_gpus=gpus,
                    # Aligners and inverters are rarely busy together: their pools overlap.
                    num_cpus=2 * whole_cpus() + 1,
                    include_dashboard=False,
                    # A subfolder of the private one: Ray makes its own writable for everyone.
                    _temp_dir=str(folder / "r") if folder else None,
                    **_log_options(),
                )
            return
        except Exception as error:
            if START_TIMED_OUT not in str(error) or not tries_left:
                raise


def _join_cluster() -> None:
    """Join the cluster; an error that retries cannot fix becomes a one-line `ConfigError`."""
    check_address()
    try:
        ray.init(address="auto", runtime_env=shipped_environment(), **_log_options())
    except (RuntimeError, ConnectionError) as error:
        text = "".join(traceback.format_exception(error))
        versions = re.findall(r"^\s*(Ray|Python): (\S+)", text, re.MULTILINE)
        if "ersion mismatch" in text and len(versions) >= 4:
            ours, theirs = dict(versions[2:4]), dict(versions[:2])
            raise ConfigError(
                f"the cluster runs Ray {theirs.get('Ray')} on Python {theirs.get('Python')}, and "
                f"this job Ray {ours.get('Ray')} on Python {ours.get('Python')}: they must be equal"
            ) from error
        if "InvalidAuthToken" in text or "Unauthenticated" in text:
            raise ConfigError(
                "the cluster requires a token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN to the "
                "values of its `ray start` (or RAY_AUTH_TOKEN_PATH to a file with it)"
            ) from error
        raise


def shipped_environment() -> dict[str, Any] | None:
    """Return the runtime environment that gives every worker the driver's choice of S3 profiles.

    None if the driver sets no profiles, or if the job was submitted with a value: workers have it
    then, and Ray refuses a second one.
    """
    profiles = os.environ.get(S3_PROFILES)
    submitted = (ray_job().get("runtime_env") or {}).get("env_vars") or {}
    if not profiles or S3_PROFILES in submitted:
        return None
    return {"env_vars": {S3_PROFILES: profiles}}


def _log_options() -> Any:
    """Return the options of `ray.init` that set how much Ray prints in this process."""
    verbose = shows_ray_log()
    return {"logging_level": logging.INFO if verbose else logging.ERROR, "log_to_driver": verbose}


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Drop the line about its log level that Ray's C++ side prints while it starts."""
    if shows_ray_log():
        yield
        return
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _cluster_resources(folder: Path | None) -> Resources:
    offered = ray.cluster_resources()
    alive = [node for node in ray.nodes() if node["Alive"]]
    return Resources(
        cpus=offered.get("CPU", 1.0),
        gpus=offered.get("GPU", 0.0),
        nodes=tuple(Node(node["NodeID"], node["Resources"]) for node in alive),
        # The label exists only on nodes that `ray up` or KubeRay started.
        grows=any(node.get("Labels", {}).get("ray.io/node-group") for node in alive),
        folder=folder,
    )


class RaySession:
    """Ray of one job: a private one on this machine, or the cluster that the job belongs to.

    Ray starts in a thread of its own, so that the caller can import and plan in the meantime. The
    thread lasts as long as Ray: Linux ends the processes of a local Ray with the thread that
    started them. Entering the session waits until Ray runs, leaving it stops Ray.

    A local Ray offers the GPUs of this machine, or `pretended_gpus` if given. Its files are in a
    private folder that is removed at the end; with RAY_TMPDIR set they are there, and stay.
    """

    def __init__(self, pretended_gpus: int | None = None) -> None:
        self._gpus = pretended_gpus
        self._folder: Path | None = None
        self._thread: threading.Thread | None = None
        self._ready, self._closed = threading.Event(), threading.Event()
        self._error: BaseException | None = None
        self._output = ExitStack()

    def start(self) -> None:
        """Begin to start Ray, unless it was begun; returns at once."""
        if self._thread:
            return
        if not in_cluster() and not os.environ.get("RAY_TMPDIR"):
            self._folder = make_private_folder()
        self._thread = threading.Thread(target=self._run, name="ray", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            with warnings.catch_warnings(), _silent_stderr(), ray_without_signal_handlers():
                warnings.simplefilter("ignore")
                if in_cluster():
                    _join_cluster()
                else:
                    _start_local(self._gpus, self._folder)
        except BaseException as error:  # noqa: BLE001 - raised in the thread that enters
            self._error = error
        finally:
            self._ready.set()
            self._closed.wait()

    def __enter__(self) -> Resources:
        enter_phase("joining the Ray cluster" if in_cluster() else "starting Ray")
        try:
            self._wait()
            self._output.enter_context(ray_lines_in_file())
            return _cluster_resources(self._folder)
        except BaseException:
            self.close()
            raise

    def _wait(self) -> None:
        """Wait until Ray runs; raise the error that kept it from starting."""
        self.start()
        self._ready.wait()
        if self._error:
            raise self._error

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop Ray, or its start; does nothing if neither was begun."""
        if not self._thread:
            return
        with undisturbed(), self._output:  # Ray also prints while it ends
            enter_phase("stopping Ray")
            self._ready.wait()
            ray.shutdown()
            self._closed.set()
            self._thread.join()
            self._thread = None
            if self._folder:
                remove_private_folder(self._folder)
