"""Run one job over several separate hosts, undisturbed and with each of them failing in turn.

Slow (about five minutes): each scenario is a whole job on a Ray cluster of three hosts. Skips, with
the reason, where network namespaces are not allowed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hosts.cluster import Cluster, Job, changed_copy, running_cluster
from tests.hosts.namespaces import ADDRESSES, ROOT, why_not
from tests.storage.archives import write_tar

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SHARDS, IMAGES = 5, 8
A, B = ADDRESSES["a"], ADDRESSES["b"]


@pytest.fixture(scope="module")
def cluster(
    tmp_path_factory: pytest.TempPathFactory, sample_images: dict[str, bytes]
) -> Iterator[Cluster]:
    """Hosts with S3 and Ray, and forty portraits in five archives in a bucket."""
    if reason := why_not():
        pytest.skip(reason)
    portraits = [image for name, image in sample_images.items() if name.startswith("portraits/")]

    def dataset(folder: Path) -> None:
        for shard in range(SHARDS):
            images = [portraits[(shard * IMAGES + n) % len(portraits)] for n in range(IMAGES)]
            names = [(f"{n:03d}.jpg", image) for n, image in enumerate(images)]
            write_tar(folder / f"shard-{shard}.tar", names)

    with running_cluster(tmp_path_factory.mktemp("hosts"), dataset) as running:
        yield running


@pytest.fixture
def restored(cluster: Cluster) -> Cluster:
    """Cluster with both workers, in whatever state the previous test left them."""
    cluster.settle()
    return cluster


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster) -> dict[str, Any]:
    """Table of an undisturbed job."""
    job = cluster.start_job()
    assert job.end() == 0, job.output
    assert job.line["samples"] == SHARDS * IMAGES
    return cluster.table(job)


def test_a_job_uses_both_workers(restored: Cluster, undisturbed: dict[str, Any]) -> None:
    assert undisturbed["counts"]["samples"] == SHARDS * IMAGES
    assert len(undisturbed["files"]) > SHARDS * IMAGES // 4
    assert restored.nodes() == {ADDRESSES[name] for name in ("head", "a", "b")}


def cut_link(cluster: Cluster) -> None:
    """A worker's link is cut for 40 seconds, about as long as Ray waits for a node."""
    with cluster.hosts["b"].link_down():
        time.sleep(40)


def kill_worker(cluster: Cluster) -> None:
    """A worker fails and is started again."""
    cluster.stop_raylet("b")
    time.sleep(5)
    cluster.restart_ray("b")


def storage_away(cluster: Cluster) -> None:
    """Cut the storage off the network for 25 seconds."""
    with cluster.hosts["s3"].link_down():
        time.sleep(25)


@pytest.mark.parametrize("disturb", [cut_link, kill_worker, storage_away])
def test_a_disturbed_job_gives_equal_bytes(
    restored: Cluster, undisturbed: dict[str, Any], disturb: Callable[[Cluster], None]
) -> None:
    job = restored.start_job()
    job.wait_for_parts(2)
    disturb(restored)
    assert job.end() == 0, job.output
    assert restored.table(job) == undisturbed
    assert job.other_lines == [], "Ray's own lines are not the user's news"
    if disturb is cut_link:
        restored.restart_ray("b")  # its raylet ends by itself some time after the cut
    if disturb is kill_worker:
        assert f"node {B} is lost: its parts are repeated" in job.notices


@pytest.mark.parametrize("when", ["at first", "later"])
def test_a_worker_without_keys_is_not_used(
    restored: Cluster, undisturbed: dict[str, Any], when: str
) -> None:
    restored.hosts["b"].kill()
    wait_for(lambda: B not in restored.nodes())
    if when == "at first":
        restored.start_ray("b", with_keys=False)
    job = restored.start_job()
    if when == "later":
        job.wait_for_parts(1)
        restored.start_ray("b", with_keys=False)
    try:
        assert job.end() == 0, job.output
        assert restored.table(job) == undisturbed
        assert f"node {B} is not used, as it does not reach the storage" in job.notices, job.output
        assert job.named("part_failed") == []
        assert job.line["errors"] == []
    finally:
        restored.hosts["b"].kill()
        wait_for(lambda: B not in restored.nodes())


def wait_for(holds: Callable[[], bool], seconds: float = 120.0) -> None:
    """Wait until `holds` does."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(1)


def refusal(job: Job) -> str:
    """Return the only line of a job that is refused."""
    assert job.end() == 2, job.output
    assert job.other_lines == []
    (event,) = job.named("refused")
    return str(event["error"])


def test_a_worker_with_other_code_is_refused(restored: Cluster, tmp_path: Path) -> None:
    path = Path("pipeline/metrics/pixel.py")
    other = changed_copy(path, "(a - b).square()", "(a - b).abs()", tmp_path)
    with restored.hosts["b"].covered(ROOT / path, other):
        text = refusal(restored.start_job())
    assert f"node {B} has other code of this package" in text


def test_a_worker_that_lacks_a_package_is_refused(restored: Cluster, tmp_path: Path) -> None:
    import duckdb

    missing = tmp_path / "missing.py"
    missing.write_text("raise ModuleNotFoundError(\"No module named 'duckdb'\", name='duckdb')")
    with restored.hosts["b"].covered(Path(duckdb.__file__), missing):
        text = refusal(restored.start_job())
    assert f"node {B} lacks this package or one that it needs" in text
    assert "duckdb" in text


def test_a_driver_without_the_token_is_refused(restored: Cluster) -> None:
    text = refusal(restored.start_job(RAY_AUTH_TOKEN="0" * 32))
    assert "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN" in text


def test_a_driver_of_another_ray_is_refused(restored: Cluster, tmp_path: Path) -> None:
    import ray._version

    path = Path(ray._version.__file__)
    other = tmp_path / path.name
    other.write_text(path.read_text().replace(f'"{ray.__version__}"', '"2.59.0"'))
    with restored.hosts["a"].covered(path, other):
        text = refusal(restored.start_job(driver="a"))
    assert f"the cluster runs Ray {ray.__version__}" in text
    assert "this job Ray 2.59.0" in text
