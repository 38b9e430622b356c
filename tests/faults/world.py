"""Shared resources of the schedules: the model, the S3 server and its proxy, the cluster."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import s3fs

from tests.faults.cluster import RayCluster, running_cluster
from tests.faults.processes import kill_tree
from tests.faults.proxy import FaultProxy, running_proxy
from tests.faults.runs import Run, prepare_forks
from tests.faults.stages import PACE
from tests.s3_server import S3Server, run_server

RAY_PACE_S = "0.3"


class World:
    """Resources that start on first use and end with the block of `shared_world`."""

    def __init__(self, folder: Path, stack: ExitStack, server: S3Server | None) -> None:
        self.folder, self._stack, self._server = folder, stack, server
        self.runs: list[Run] = []

    @cached_property
    def forks(self) -> Any:
        """Context that forks light runs."""
        return prepare_forks()

    @cached_property
    def model(self) -> str:
        """Bundle of a small seeded model."""
        from tests.tiny_bundle import write_tiny_bundle

        return write_tiny_bundle(str(self.folder / "model"))

    @cached_property
    def server(self) -> S3Server:
        """Real S3 server; this process accesses it without the proxy."""
        return self._server or self._stack.enter_context(run_server(self._new_folder("s3")))

    @cached_property
    def proxy(self) -> FaultProxy:
        """Proxy in front of the server, used by runs."""
        return self._stack.enter_context(running_proxy(self.server.address))

    @property
    def s3_environment(self) -> dict[str, str]:
        """Environment of a run, with the proxy as its S3 endpoint."""
        return {**self.server.env, "AWS_ENDPOINT_URL": self.proxy.url}

    @cached_property
    def s3(self) -> s3fs.S3FileSystem:
        """File system of the server without the proxy."""
        return s3fs.S3FileSystem(use_listings_cache=False, endpoint_url=self._endpoint)

    @cached_property
    def cluster(self) -> RayCluster:
        """Cluster of several nodes, whose workers use the proxy."""
        values = {**self.s3_environment, PACE: RAY_PACE_S}
        return self._stack.enter_context(running_cluster(self.folder, values))

    @property
    def _endpoint(self) -> str:
        return self.server.env["AWS_ENDPOINT_URL"]

    def _new_folder(self, name: str) -> Path:
        path = self.folder / name
        path.mkdir(parents=True)
        return path


@contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables inside the block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def shared_world(folder: Path, server: S3Server | None = None) -> Iterator[World]:
    """Provide resources with files in `folder`; all that they started ends with the block."""
    with ExitStack() as stack:
        world = World(folder, stack, server)
        try:
            yield world
        finally:
            for run in world.runs:
                if run.running():
                    kill_tree(run.pid)
