"""A Ray head of its own on this machine, and `ray job ...` as its users call it."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.jobs.running import Ended
from tests.ports import free_ports

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 900.0
START_TRIES = 3
_RAY = Path(sys.executable).with_name("ray")


class Submitted:
    """A job on its way; its output is read as it comes."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []

    def wait_for(self, pattern: str) -> str:
        """Return the next line that matches `pattern`, while the job runs."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
            if re.search(pattern, line):
                return line
        raise AssertionError(f"no {pattern!r} in\n" + "\n".join(self.lines))

    def ended(self) -> Ended:
        """Wait for the end; stdout and stderr of the job and of the client, as they came."""
        assert self.process.stdout is not None
        with self.process.stdout as rest:
            self.lines += [line.rstrip("\n") for line in rest]
        code = self.process.wait(PATIENCE_S)
        return Ended(code, "\n".join(self.lines), "")


@dataclass
class Head:
    """A running head: its ports, and the environment of those who talk to it."""

    port: int
    dashboard: int
    metrics: int
    env: dict[str, str]
    clients: list[subprocess.Popen[str]] = field(default_factory=list)

    def ray(self, *words: object, **environment: str) -> subprocess.Popen[str]:
        """`ray ...` against this head, with `environment` on top."""
        env = {**self.env, **environment, "RAY_ADDRESS": f"http://127.0.0.1:{self.dashboard}"}
        client = subprocess.Popen(
            [str(_RAY), *map(str, words)],
            cwd=ROOT,
            env=env,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.clients.append(client)
        return client

    def submit(self, *command: object, job: str | None = None, **environment: str) -> Submitted:
        """`ray job submit --working-dir . -- command`, as the README has it."""
        name = job or f"test-{secrets.token_hex(4)}"
        words = ("job", "submit", "--submission-id", name, "--working-dir", ".", "--", *command)
        return Submitted(self.ray(*words, **environment))

    def stop(self, job: str) -> None:
        """Send the request of `ray job stop`, without the start of the client."""
        assert json.loads(self.get(f"/api/jobs/{job}/stop", "POST")) == {"stopped": True}

    def get(self, path: str, method: str = "GET") -> str:
        """Return the dashboard's answer."""
        token = self.env.get("RAY_AUTH_TOKEN", "")
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.dashboard}{path}",
            method=method,
            headers={"Authorization": f"Bearer {token}"} if token else {},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return str(answer.read().decode())

    def scrape(self) -> str:
        """Return the text of the node's metrics endpoint; "" while it does not listen."""
        address = f"http://127.0.0.1:{self.metrics}/metrics"
        with suppress(OSError), urllib.request.urlopen(address, timeout=30) as answer:
            return str(answer.read().decode())
        return ""


def _environment(folder: Path, auth: dict[str, str]) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {
        **inherited,
        **auth,
        "HOME": str(folder),
        "PATH": f"{_RAY.parent}:{os.environ['PATH']}",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_metrics_report_interval_ms": "1000",
        "OMP_WAIT_POLICY": "passive",
    }


@contextmanager
def running_head(auth: dict[str, str], *, cpus: int = 5) -> Iterator[Head]:
    """Start a head with this authentication; its processes end with the block, no others do."""
    # Ray's sockets lie here, and their paths must be short.
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    port, dashboard, listen, grpc, runtime, metrics = free_ports(6)
    head = Head(port, dashboard, metrics, _environment(folder, auth))
    options = {
        "port": port,
        "dashboard-host": "127.0.0.1",
        "dashboard-port": dashboard,
        "dashboard-agent-listen-port": listen,
        "dashboard-agent-grpc-port": grpc,
        "runtime-env-agent-port": runtime,
        "metrics-export-port": metrics,
        "num-cpus": cpus,
        "object-store-memory": 500_000_000,
        "temp-dir": folder / "ray",
    }
    words = [f"--{name}={value}" for name, value in options.items()]
    process = _start(head, words, folder)
    try:
        yield head
    finally:
        for client in head.clients:
            _close(client)
        _end(process, str(folder))
        shutil.rmtree(folder, ignore_errors=True)


def _start(head: Head, words: list[str], folder: Path) -> subprocess.Popen[bytes]:
    """Start it patiently: Ray's own limits on its start are too short for a busy machine."""
    for tries_left in reversed(range(START_TRIES)):
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [str(_RAY), "start", "--head", "--block", "--include-dashboard=true", *words],
                env=head.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            _wait_for_agent(head, process, folder / "log")
        except AssertionError:
            _end(process, str(folder))
            if not tries_left:
                raise
        else:
            return process
    raise AssertionError("not reached")


def _wait_for_agent(head: Head, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the head takes jobs: till then it has no agent to run them."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        if _lists_jobs(head) and head.scrape():
            return
        time.sleep(0.2)


def _lists_jobs(head: Head) -> bool:
    """Send the request of `ray job list`, without the start of the client."""
    try:
        head.get("/api/jobs/")
    except OSError as error:
        if isinstance(error, urllib.error.HTTPError) and error.code == 401:
            raise AssertionError("the head refuses its own token") from error
        return False
    return True


def _close(client: subprocess.Popen[str]) -> None:
    """End a client that a failed test left, so that its pipe is not the next test's warning."""
    client.kill()
    client.wait(30)
    if client.stdout:
        client.stdout.close()


def _end(process: subprocess.Popen[bytes], mark: str) -> None:
    """End the head and what it started: all that has its folder for a home."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(10)
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"HOME={mark}\0".encode() in (entry / "environ").read_bytes():
                os.kill(int(entry.name), signal.SIGKILL)
    process.wait(30)
