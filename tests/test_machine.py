"""CPU and memory limits follow affinity and cgroups, not the host's totals."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from pipeline.machine import cpu_limit, has_gpu_device, memory_limit, whole_cpus

ROOT = Path(__file__).resolve().parents[1]
V2 = "0::/kubepods/pod7/c1\n"
V1 = "4:memory:/docker/abc\n2:cpu,cpuacct:/docker/abc\n"


def tree(root: Path, cgroup: str, **files: str) -> Path:
    """Write /proc and /sys below `root`; in names `__` means a slash and `_` a dot."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(cgroup)
    for name, text in files.items():
        folder, _, last = name.rpartition("__")
        path = root / "sys/fs/cgroup" / folder.replace("__", "/")
        path.mkdir(parents=True, exist_ok=True)
        (path / last.replace("_", ".", 1)).write_text(text)
    return root


@pytest.mark.parametrize(
    ("cgroup", "files", "cpus"),
    [
        (V2, {"kubepods__pod7__c1__cpu_max": "50000 100000\n"}, 0.5),
        (V2, {"kubepods__cpu_max": "50000 100000\n", "cpu_max": "max 100000"}, 0.5),
        (V2, {"cpu_max": "20000 100000\n"}, 0.2),  # a container's own, its path is the host's
        (V1, {"cpu,cpuacct__docker__abc__cpu_cfs_quota_us": "30000\n"}, None),
        (
            V1,
            {
                "cpu,cpuacct__docker__abc__cpu_cfs_quota_us": "30000\n",
                "cpu,cpuacct__docker__abc__cpu_cfs_period_us": "100000\n",
            },
            0.3,
        ),
        (
            V1,
            {"cpu__cpu_cfs_quota_us": "-1\n", "cpu__cpu_cfs_period_us": "100000\n"},
            None,
        ),
        (V2, {"cpu_max": "max 100000"}, None),
        (V2, {"cpu_max": "broken"}, None),
        ("not a line", {}, None),
    ],
)
def test_a_cpu_quota_limits_the_cpus(
    tmp_path: Path, cgroup: str, files: dict[str, str], cpus: float | None
) -> None:
    expected = float(len(os.sched_getaffinity(0))) if cpus is None else cpus
    assert cpu_limit(tree(tmp_path, cgroup, **files)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("cgroup", "files", "limit"),
    [
        (V2, {"kubepods__pod7__c1__memory_max": "1000000\n"}, 1000000),
        (V2, {"kubepods__memory_max": "3000000\n", "memory_max": "max\n"}, 3000000),
        (V1, {"memory__docker__abc__memory_limit_in_bytes": "2000000\n"}, 2000000),
        (V1, {"memory__memory_limit_in_bytes": "9223372036854771712\n"}, None),
        (V2, {"memory_max": "max\n"}, None),
    ],
)
def test_a_memory_limit_limits_the_memory(
    tmp_path: Path, cgroup: str, files: dict[str, str], limit: int | None
) -> None:
    allowed = memory_limit(tree(tmp_path, cgroup, **files))
    assert allowed == limit if limit else allowed > 1 << 28


@pytest.mark.parametrize(("device", "gpu"), [("nvidia0", True), ("kfd", True), ("nvme0", False)])
def test_a_device_of_a_gpu_is_recognised(tmp_path: Path, device: str, gpu: bool) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / device).touch()
    assert has_gpu_device(tmp_path) is gpu


def test_at_least_one_worker_is_allowed(tmp_path: Path) -> None:
    assert whole_cpus(tree(tmp_path, V2, cpu_max="5000 100000")) == 1


def test_affinity_limits_the_cpus() -> None:
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
        "from pipeline.machine import cpu_limit; print(cpu_limit())"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert float(run.stdout) <= 1


@pytest.fixture
def real_cgroup() -> Iterator[Path]:
    """Create a cgroup that processes can join; skips where that is not permitted."""
    for parent, limit in (("cpu", "cpu.cfs_quota_us"), ("", "cpu.max"), ("unified", "cpu.max")):
        folder = Path("/sys/fs/cgroup", parent, f"restyle-test-{os.getpid()}")
        try:
            folder.mkdir()
            text = "50000 100000" if limit == "cpu.max" else "50000"
            (folder / limit).write_text(text)
        except OSError:
            with suppress(OSError):
                folder.rmdir()
            continue
        yield folder
        folder.rmdir()
        return
    pytest.skip("cannot create a cgroup with a CPU quota here")


def test_a_real_cgroup_quota_is_read(real_cgroup: Path) -> None:
    code = "from pipeline.machine import cpu_limit; print(cpu_limit())"
    join = f'echo $$ > {real_cgroup}/cgroup.procs && exec "$0" "$@"'
    run = subprocess.run(
        ["sh", "-c", join, sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(run.stdout) == 0.5
