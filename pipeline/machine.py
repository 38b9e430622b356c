"""What this process may use of its machine: affinity and cgroup limits, not what the host has."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

# Above any memory: what cgroup v1 has in place of "no limit" is about 2**63.
_NO_LIMIT = 1 << 60


def cpu_limit(root: Path = Path("/")) -> float:
    """Return how many CPUs this process may keep busy, above 0.

    The smallest of its affinity (`taskset`, cpusets) and the CPU quotas of its cgroup and of those
    above it (`docker --cpus`, a pod's limit). A quota may be a fraction. `root` is where /proc and
    /sys are.
    """
    allowed = float(len(os.sched_getaffinity(0)))
    for folder in _cgroups("cpu", root):
        allowed = min(allowed, _quota_v2(folder), _quota_v1(folder))
    return max(allowed, 0.01)


def whole_cpus(root: Path = Path("/")) -> int:
    """Return `cpu_limit` as a number of workers: rounded down, at least 1."""
    return max(1, int(cpu_limit(root)))


def memory_limit(root: Path = Path("/")) -> int:
    """Return how many bytes of memory this process and its cgroup may take.

    The smallest of the machine's memory and the limits of the cgroup and of those above it.
    """
    allowed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for folder in _cgroups("memory", root):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limit = _number(folder / name)
            if limit is not None and limit < _NO_LIMIT:
                allowed = min(allowed, int(limit))
    return allowed


def _cgroups(controller: str, root: Path) -> Iterator[Path]:
    """Yield the folder of this process's cgroup and those above it, of either cgroup version.

    In a container the path in /proc may be the host's, which is not mounted there: then only the
    top folder exists, and it is the container's own.
    """
    with suppress(OSError, ValueError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and controller not in controllers.split(","):
                continue
            mounts = [controllers, controller] if controllers else ["", "unified"]
            for mount in dict.fromkeys(mounts):
                top = root / "sys/fs/cgroup" / mount
                relative = Path(path.lstrip("/"))
                yield from (top / part for part in (relative, *relative.parents))


def _quota_v2(folder: Path) -> float:
    """Return the CPUs that `cpu.max` allows: "max 100000" or "50000 100000" (µs in a period)."""
    with suppress(OSError, ValueError):
        quota, period = (folder / "cpu.max").read_text().split()
        if quota != "max":
            return int(quota) / int(period)
    return float("inf")


def _quota_v1(folder: Path) -> float:
    """Return the CPUs that `cpu.cfs_quota_us` allows; -1 is no limit."""
    quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
    return quota / period if quota and quota > 0 and period else float("inf")


def _number(path: Path) -> float | None:
    with suppress(OSError, ValueError):
        return float(path.read_text())
    return None
