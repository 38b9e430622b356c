"""Fixtures that tests of several packages use."""

from __future__ import annotations

import gc
import itertools
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import pipeline
from tests.faults.proxy import FaultProxy, running_proxy
from tests.s3_server import S3Server, WeedMissingError, drop_bucket, make_bucket, run_server

_BUCKETS = itertools.count()


# Two processes share two cores; this is read when PyTorch is imported, here and in child processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

TESTS = Path(__file__).parent
# Modules that share what is slow to make: each group runs in one process of `make test`.
SHARING = {
    "one run of the job": (
        "jobs/test_interrupted_job.py",
        "jobs/test_inputs.py",
        "jobs/test_submitted_job.py",
        "jobs/test_refine_dataset.py",
        "jobs/test_invert_dataset.py",
    ),
    "one Ray": ("engine/on_ray/",),
}
# What runs for minutes, in the order in which the processes of `make test` start it.
_LONGEST = ("jobs/test_", "faults/test_schedules", "engine/on_ray/", "engine/", "faults/", "fuzz/")


def group_of(name: str) -> str:
    """Return the group of the module `name`, a path below tests/: itself if it shares nothing."""
    groups = (group for group, starts in SHARING.items() if name.startswith(starts))
    return next(groups, name)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest groups first, so that no process is left with one of them at the end."""

    def place(item: pytest.Item) -> tuple[int, int]:
        name = item.path.relative_to(TESTS).as_posix()
        starts = (i for i, start in enumerate(_LONGEST) if name.startswith(start))
        return int(group_of(name) == name), next(starts, len(_LONGEST))

    items.sort(key=place)


def pytest_configure() -> None:
    """Collect no garbage while modules are imported: a third of that time, for nothing."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Collect from here on, but not over the modules and the tests again and again."""
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    """Let the end of the process free what was left alone."""
    gc.unfreeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give a whole group to one process."""
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid.partition("::")[0].removeprefix("tests/"))

    return ByGroup(config, log)


@dataclass(frozen=True)
class Bucket:
    """Empty bucket on a real server: its URI, and the environment that gives access to it."""

    uri: str
    env: dict[str, str]
    server: S3Server


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Run a real S3 server for the session; skips if its binary cannot run."""
    try:
        with run_server(tmp_path_factory.mktemp("s3")) as server:
            yield server
    except WeedMissingError as error:
        pytest.skip(str(error))


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """Create a bucket and set this process's environment to access it; deleted after the test."""
    for name, value in s3_server.env.items():
        monkeypatch.setenv(name, value)
    name = f"bucket-{next(_BUCKETS)}"
    yield Bucket(make_bucket(s3_server, name), s3_server.env, s3_server)
    # Each bucket occupies volumes of the server, which has about seventy.
    drop_bucket(s3_server, name)


@pytest.fixture
def proxy(s3: Bucket) -> Iterator[FaultProxy]:
    """Run a proxy in front of the server of `s3`; the environment still names the server."""
    with running_proxy(s3.server.address) as running:
        yield running


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of reference data next to the repository; skips if it is missing."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not (folder / "reference").is_dir():
        pytest.skip(f"no reference data at {folder}")
    return folder


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a bundle with a seeded model of 64 px: real arithmetic, meaningless faces."""
    # Imported here, so that tests of packages without networks do not wait for PyTorch.
    from tests.tiny_bundle import write_tiny_bundle

    return write_tiny_bundle(str(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(scope="session")
def sample_images() -> dict[str, bytes]:
    """Return the package's sample images by path: rendered faces, and files to be refused."""
    images = {}
    for archive in sorted((Path(pipeline.__file__).parent / "samples").glob("*.tar")):
        with tarfile.open(archive) as tar:
            for member in tar:
                content = tar.extractfile(member)
                if content and not member.name.endswith(".json"):
                    images[member.name] = content.read()
    return images
