"""Resources that this process may use: affinity and cgroup limits, not the host's totals."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

# More than any machine has: cgroup v1 writes "no limit" as about 2**63.
_NO_LIMIT = 1 << 60
# Beginnings of names in /dev: NVIDIA, its Tegra boards, AMD, and the Linux subsystem of Windows.
_GPU_DEVICES = ("nvidia", "nvgpu", "nvhost", "kfd", "dxg")


def cpu_limit(root: Path = Path("/")) -> float:
    """Return the number of CPUs that this process may use, above 0.

    The minimum of its affinity (`taskset`, cpusets) and the CPU quotas of its cgroup and the
    cgroup's parents (`docker --cpus`, a pod's limit). A quota may be a fraction. `root` is the
    folder that contains /proc and /sys.
    """
    allowed = float(len(os.sched_getaffinity(0)))
    for folder in _cgroups("cpu", root):
        allowed = min(allowed, _quota_v2(folder), _quota_v1(folder))
    return max(allowed, 0.01)


def whole_cpus(root: Path = Path("/")) -> int:
    """Return `cpu_limit` as a number of workers: rounded down, at least 1."""
    return max(1, int(cpu_limit(root)))


def has_gpu_device(root: Path = Path("/")) -> bool:
    """Return whether the machine shows a device of a GPU driver, which PyTorch may yet not use."""
    try:
        return any(entry.name.startswith(_GPU_DEVICES) for entry in (root / "dev").iterdir())
    except OSError:
        return True


def memory_limit(root: Path = Path("/")) -> int:
    """Return the bytes of memory that this process and its cgroup may use.

    The minimum of the machine's memory and the limits of the cgroup and its parents.
    """
    allowed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for folder in _cgroups("memory", root):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limit = _number(folder / name)
            if limit is not None and limit < _NO_LIMIT:
                allowed = min(allowed, int(limit))
    return allowed


def _cgroups(controller: str, root: Path) -> Iterator[Path]:
    """Yield the folders of this process's cgroup and its parents, for both cgroup versions.

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
    """Return the CPUs that `cpu.max` allows: "max 100000" or "50000 100000" (µs per period)."""
    with suppress(OSError, ValueError):
        quota, period = (folder / "cpu.max").read_text().split()
        if quota != "max":
            return int(quota) / int(period)
    return float("inf")


def _quota_v1(folder: Path) -> float:
    """Return the CPUs that `cpu.cfs_quota_us` allows; -1 means no limit."""
    quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
    return quota / period if quota and quota > 0 and period else float("inf")


def _number(path: Path) -> float | None:
    with suppress(OSError, ValueError):
        return float(path.read_text())
    return None
