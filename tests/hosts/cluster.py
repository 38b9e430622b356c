"""A Ray cluster over hosts that are apart: a head without work, workers A and B, and S3."""

from __future__ import annotations

import json
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.hosts.namespaces import ADDRESSES, ROOT, Host, running_hosts

_BIN = Path(sys.executable).parent
_START_S, JOB_S = 180.0, 900.0
_START_TRIES = 3
STEPS, PART_SIZE = 10, 4
_REGION = {"AWS_DEFAULT_REGION": "us-east-1"}
_NO_FILES = {
    "AWS_CONFIG_FILE": "/nonexistent/config",
    "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent/credentials",
}
_INSPECT = """
import hashlib, json, sys
from pipeline.storage import Store
from pipeline.table import open_table
store = Store(sys.argv[1])
names = [name for name in store.names() if name.startswith(("latents/", "rejects/"))]
files = {name: hashlib.sha256(store.get(name)).hexdigest() for name in names}
print(json.dumps({"files": files, "counts": open_table(sys.argv[1]).verify()}))
"""
_UPLOAD = """
import sys
from pathlib import Path
import s3fs
s3 = s3fs.S3FileSystem()
for bucket in ("data", "out"):
    s3.mkdir(bucket)
for path in sorted(Path(sys.argv[1]).iterdir()):
    s3.put_file(str(path), f"data/shards/{path.name}")
"""


class Job:
    """A job that runs on a host; its events are read as they come."""

    def __init__(self, log: Path, process: subprocess.Popen[str]) -> None:
        self.log, self.process = log, process
        self.events: list[dict[str, Any]] = []
        self.other_lines: list[str] = []
        self.out = ""
        self._change = threading.Condition()
        self._threads = [
            threading.Thread(target=target, daemon=True) for target in (self._read, self._keep)
        ]
        for thread in self._threads:
            thread.start()

    def _read(self) -> None:
        assert self.process.stderr
        with self.process.stderr as stderr:
            for line in stderr:
                with self._change:
                    try:
                        self.events.append(json.loads(line))
                    except ValueError:
                        self.other_lines.append(line.rstrip())
                    self._change.notify_all()

    def _keep(self) -> None:
        assert self.process.stdout
        with self.process.stdout as stdout:
            self.out = stdout.read()

    def named(self, event: str) -> list[dict[str, Any]]:
        """Return the events of this name so far."""
        return [one for one in self.events if one["event"] == event]

    def wait_for(self, what: Callable[[Job], bool], seconds: float = JOB_S) -> None:
        """Wait until `what` holds of what the job has said."""
        deadline = time.monotonic() + seconds
        with self._change:
            while not what(self):
                assert self.process.poll() is None, self.output
                assert time.monotonic() < deadline, self.output
                self._change.wait(1)

    def wait_for_parts(self, count: int) -> None:
        """Wait until so many parts are in the table."""
        self.wait_for(lambda job: len(job.named("part_done")) >= count)

    def end(self) -> int:
        """Wait for its end; return its exit code."""
        try:
            code = self.process.wait(JOB_S)
        finally:
            self.process.kill()
            for thread in self._threads:
                thread.join(30)
            self.log.write_text(self.output)
        return code

    @property
    def notices(self) -> str:
        """Return its notices about nodes."""
        return "\n".join(str(one["text"]) for one in self.named("notice"))

    @property
    def output(self) -> str:
        """Return its whole output, for a test that fails."""
        return "\n".join([*map(json.dumps, self.events[-40:]), *self.other_lines[-40:], self.out])

    @property
    def line(self) -> dict[str, Any]:
        """Return the last line of stdout."""
        found: dict[str, Any] = json.loads(self.out.splitlines()[-1])
        return found


@dataclass
class Cluster:
    """Hosts, their processes, and the addresses and keys by which these reach each other."""

    hosts: dict[str, Host]
    logs: Path
    token: str = field(default_factory=lambda: secrets.token_hex(16))
    secret: str = field(default_factory=lambda: "planted-" + secrets.token_hex(12))
    jobs: int = 0
    s3: subprocess.Popen[bytes] | None = None

    @property
    def keys(self) -> dict[str, str]:
        """Credentials of the storage."""
        return {"AWS_ACCESS_KEY_ID": "test-access-key", "AWS_SECRET_ACCESS_KEY": self.secret}

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment of every process on a host, without the credentials."""
        return {
            "PATH": f"{_BIN}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "HOME": "/tmp/home",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_USAGE_STATS_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
            "AWS_ENDPOINT_URL": f"http://{ADDRESSES['s3']}:8333",
            **_REGION,
            **_NO_FILES,
        }

    def run(self, host: str, *words: object, limit: float = _START_S) -> str:
        """Run a command on a host to its end; return its stdout."""
        command = self.hosts[host].command(words, self.environment | self.keys)
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
        assert done.returncode == 0, f"{words}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        return done.stdout

    def start_s3(self) -> None:
        """Start the S3 server and wait until it takes a bucket."""
        options = ["-dir=/tmp/data", f"-ip={ADDRESSES['s3']}", "-ip.bind=0.0.0.0", "-s3.port=8333"]
        options += ["-webdav=false", "-admin.ui=false", "-master.telemetry=false"]
        options += ["-s3.port.iceberg=0", "-s3.port.lance=0"]
        (self.hosts["s3"].disk / "data").mkdir()
        environment = self.environment | self.keys | {"TMPDIR": "/tmp"}
        with (self.logs / "s3.log").open("w") as log:
            command = self.hosts["s3"].command([_BIN / "weed", "mini", *options], environment)
            self.s3 = subprocess.Popen(command, stdout=log, stderr=log)

    def stop_s3(self) -> None:
        """End the S3 server."""
        if self.s3:
            self.s3.kill()
            self.s3.wait()

    def upload(self, folder: Path) -> None:
        """Put the files of `folder`, which is on the head's disk, under s3://data/shards."""
        deadline = time.monotonic() + _START_S
        while True:
            try:
                self.run("head", sys.executable, "-c", _UPLOAD, folder)
            except AssertionError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(1)
            else:
                return

    def start_ray(self, host: str, *, with_keys: bool = True) -> None:
        """Start Ray's processes on a host: the head's without CPUs, others with two."""
        own = ADDRESSES[host]
        joins = ["--head", "--port=6379", "--num-cpus=0", "--include-dashboard=false"]
        if host != "head":
            joins = [f"--address={ADDRESSES['head']}:6379", "--num-cpus=2"]
        options = [f"--node-ip-address={own}", "--num-gpus=0", "--object-store-memory=150000000"]
        environment = self.environment | {"RAY_BACKEND_LOG_LEVEL": "warning"}
        environment |= self.keys if with_keys else {}
        command = self.hosts[host].command([_BIN / "ray", "start", *joins, *options], environment)
        for tries_left in reversed(range(_START_TRIES)):
            with (self.logs / f"{host}.log").open("a") as log:
                code = subprocess.run(
                    command, stdout=log, stderr=log, timeout=_START_S, check=False
                ).returncode
            if not code:
                return
            self.hosts[host].kill()  # on a busy machine Ray's own limits of seconds take some tries
            assert tries_left, (self.logs / f"{host}.log").read_text()[-2000:]

    def restart_ray(self, host: str, *, with_keys: bool = True) -> None:
        """End what runs on a host and start Ray there."""
        self.hosts[host].kill()
        self.start_ray(host, with_keys=with_keys)

    def nodes(self) -> set[str]:
        """Return the addresses of the nodes that the cluster has."""
        code = (
            "import ray; ray.init(address='auto', logging_level='ERROR', log_to_driver=False)"
            "; print('nodes', *(n['NodeManagerAddress'] for n in ray.nodes() if n['Alive']))"
        )
        said = self.run("head", "env", "RAY_ADDRESS=10.77.0.1:6379", sys.executable, "-c", code)
        (line,) = (line for line in said.splitlines() if line.startswith("nodes"))
        return set(line.split()[1:])

    def settle(self) -> None:
        """Have both workers in the cluster, with credentials, whatever was done to them."""
        for host in ("a", "b"):
            if ADDRESSES[host] not in self.nodes():
                self.restart_ray(host)

    def start_job(self, *, driver: str = "head", output: str = "", **environment: str) -> Job:
        """Start a job that joins the cluster from a host."""
        self.jobs += 1
        words = [sys.executable, "jobs/invert_dataset.py", "--input", "s3://data/shards"]
        words += ["--output", output or f"s3://out/{self.jobs}", "--identity", "none"]
        words += ["--model", "demo", "--steps", str(STEPS), "--part-size", str(PART_SIZE)]
        words += ["--log-format", "json"]
        given = {"RAY_ADDRESS": f"{ADDRESSES['head']}:6379"}
        given = self.environment | self.keys | given | environment
        return Job(
            self.logs / f"job-{self.jobs}.log",
            subprocess.Popen(
                self.hosts[driver].command(words, given),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            ),
        )

    def table(self, job: Job) -> dict[str, Any]:
        """Verify the table of a job that ended well; return its faces and the hash of each file."""
        said = self.run("head", sys.executable, "-c", _INSPECT, job.line["table"])
        found: dict[str, Any] = json.loads(said)
        return found

    def raylet(self, host: str) -> int:
        """Return the process of a host's raylet."""
        for pid in self.hosts[host].pids():
            with suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text().strip() == "raylet":
                    return pid
        raise AssertionError(f"no raylet on {host}")

    def stop_raylet(self, host: str) -> None:
        """Kill a host's raylet, as a machine that fails does."""
        subprocess.run(["kill", f"-{signal.SIGKILL.value}", str(self.raylet(host))], check=True)


@contextmanager
def running_cluster(folder: Path, dataset: Callable[[Path], None]) -> Iterator[Cluster]:
    """Start S3 with the files that `dataset` writes into a folder, the head, A and B."""
    with running_hosts(folder / "disks") as hosts:
        logs = folder / "logs"
        logs.mkdir()
        cluster = Cluster(hosts, logs)
        try:
            cluster.start_s3()
            cluster.start_ray("head")
            shards = hosts["head"].disk / "shards"
            shards.mkdir()
            dataset(shards)
            cluster.upload(Path("/tmp/shards"))
            for host in ("a", "b"):
                cluster.start_ray(host)
            yield cluster
        finally:
            cluster.stop_s3()


def changed_copy(path: Path, old: str, new: str, folder: Path) -> Path:
    """Return a copy of a file of the package in which `old` is `new`."""
    text = (ROOT / path).read_text()
    assert old in text
    copy = folder / path.name
    copy.write_text(text.replace(old, new))
    return copy
