"""Hosts on one machine: each with a network, mounts (disk, shared memory) and a name of its own.

A host is a network namespace behind a bridge that has a namespace too, so that nothing of the
machine's own network is touched, and a process that holds a mount and a UTS namespace. /tmp is a
folder of the host's own, /dev/shm a tmpfs; the clone and the interpreter lie where they do outside.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ADDRESSES = {"head": "10.77.0.1", "a": "10.77.0.2", "b": "10.77.0.3", "s3": "10.77.0.4"}
_TOOLS = ("ip", "nsenter", "unshare", "mount", "hostname")
_SHARED_MEMORY = "1g"
_NO_PEER = "02:00:00:00:00:99"  # a hardware address that nobody has


def why_not() -> str:
    """Return why hosts cannot be made here; "" where they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if absent := [tool for tool in _TOOLS if not shutil.which(tool)]:
        return f"no {', '.join(absent)} here (iproute2, util-linux)"
    name = f"probe{os.getpid()}"
    try:
        _run("ip", "netns", "add", name)
        _run("ip", "netns", "exec", name, "unshare", "-m", "-u", "hostname", name)
    except subprocess.CalledProcessError as error:
        return f"network namespaces are not allowed here: {error.stderr.strip()}"
    finally:
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return ""


def _run(*command: object) -> str:
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout


@dataclass(frozen=True)
class Host:
    """Host: its name, its network namespace, and the process that holds the others."""

    name: str
    namespace: str
    switch: str  # namespace of the bridge
    disk: Path  # its /tmp
    holder: int

    @property
    def address(self) -> str:
        """Return the address at which the others reach it."""
        return ADDRESSES[self.name]

    def command(self, words: Sequence[object], environment: Mapping[str, str]) -> list[str]:
        """Return the command line that runs `words` on this host, with this environment alone."""
        inside = ["nsenter", "-t", str(self.holder), "-m", "-u", "-n", f"--wd={ROOT}", "env", "-i"]
        given = [f"{name}={value}" for name, value in environment.items()]
        return [*inside, *given, *map(str, words)]

    def pids(self) -> list[int]:
        """Return the processes of this host, but for the one that holds it."""
        found = map(int, _run("ip", "netns", "pids", self.namespace).split())
        return [pid for pid in found if pid != self.holder]

    def kill(self) -> None:
        """End all that runs on this host."""
        for _ in range(10):  # those that are just being started are seen the next time
            for pid in self.pids():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.3)
            if not self.pids():
                return

    @contextmanager
    def link_down(self) -> Iterator[None]:
        """Take this host off the network for the block."""
        port = ("ip", "-n", self.switch, "link", "set", f"p-{self.name}")
        _run(*port, "down")
        try:
            yield
        finally:
            _run(*port, "up")

    @contextmanager
    def without(self, peer: str) -> Iterator[None]:
        """Lose all packets from this host to another one for the block, in silence."""
        neighbour = (ADDRESSES[peer], "dev", "eth0")
        table = ("ip", "-n", self.namespace, "neigh")
        _run(*table, "replace", *neighbour, "lladdr", _NO_PEER, "nud", "permanent")
        try:
            yield
        finally:
            _run(*table, "del", *neighbour)

    @contextmanager
    def covered(self, path: Path, by: Path) -> Iterator[None]:
        """Put a copy of another file or folder in the place of `path`, on this host alone."""
        inside = ("nsenter", "-t", self.holder, "-m")
        copied = shutil.copytree if by.is_dir() else shutil.copy
        copied(by, self.disk / by.name)
        _run(*inside, "mount", "--bind", Path("/tmp") / by.name, path)
        try:
            yield
        finally:
            _run(*inside, "umount", "-l", path)


@contextmanager
def running_hosts(folder: Path) -> Iterator[dict[str, Host]]:
    """Give the hosts of `ADDRESSES`, with their disks in `folder`; end all of them at the end."""
    with ExitStack() as stack:
        switch = f"hs{os.getpid()}-sw"
        _namespace(stack, switch)
        _run("ip", "-n", switch, "link", "add", "br0", "type", "bridge")
        _run("ip", "-n", switch, "link", "set", "br0", "up")
        yield {name: _host(stack, name, switch, folder / name) for name in ADDRESSES}


def _namespace(stack: ExitStack, name: str) -> None:
    _run("ip", "netns", "add", name)
    stack.callback(subprocess.run, ["ip", "netns", "del", name], check=False, capture_output=True)


def _host(stack: ExitStack, name: str, switch: str, disk: Path) -> Host:
    namespace = f"hs{os.getpid()}-{name}"
    _namespace(stack, namespace)
    own = ("ip", "-n", namespace)
    _run("ip", "-n", switch, "link", "add", f"p-{name}", "type", "veth", "peer", "name", "eth0")
    _run("ip", "-n", switch, "link", "set", "eth0", "netns", namespace)
    _run("ip", "-n", switch, "link", "set", f"p-{name}", "master", "br0", "up")
    _run(*own, "link", "set", "lo", "up")
    _run(*own, "addr", "add", f"{ADDRESSES[name]}/24", "dev", "eth0")
    _run(*own, "link", "set", "eth0", "up")
    # Ray takes the interface of the default route for its own.
    _run(*own, "route", "add", "default", "via", "10.77.0.254")
    inside = ["ip", "netns", "exec", namespace, "unshare", "-m", "-u", "--propagation", "private"]
    holder = subprocess.Popen(
        [*inside, "sh", "-ec", _mounts(name, disk)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    host = Host(name, namespace, switch, disk, holder.pid)
    stack.callback(_end, host, holder)
    assert holder.stdout
    assert holder.stdout.readline() == "ready\n", f"host {name} was not made"
    return host


def _mounts(name: str, disk: Path) -> str:
    """Return the shell commands that make the mounts of a host and hold them."""
    (disk / "home").mkdir(parents=True)
    others = "".join(f"{address} {other}\n" for other, address in ADDRESSES.items())
    names = disk.with_suffix(".hosts")
    names.write_text(f"127.0.0.1 localhost\n{others}")
    steps = [f"hostname {name}", f"mount --bind {names} /etc/hosts"]
    steps += [f"mount -t tmpfs -o size={_SHARED_MEMORY} none /dev/shm"]
    for path in {ROOT, Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve()}:
        if path.is_relative_to("/tmp"):
            inside = disk / path.relative_to("/tmp")
            steps += [f"mkdir -p {inside}", f"mount --rbind {path} {inside}"]
    steps += [f"mount --rbind {disk} /tmp", "echo ready", "exec sleep 7200"]
    return "\n".join(steps)


def _end(host: Host, holder: subprocess.Popen[str]) -> None:
    host.kill()
    holder.kill()
    holder.wait()
    if holder.stdout:
        holder.stdout.close()
