"""The image itself, built and run, where something is there to build it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.configurations import FOLDER, ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

IMAGE = "restyle-pipeline:built-by-the-tests"
COPIED = ("pyproject.toml", ".constraints.txt", "README.md", "LICENSE", "pipeline", "jobs")


def call(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def builder() -> str:
    """docker with its daemon, podman or buildah: the first that works here."""
    reasons = []
    for name in ("docker", "podman", "buildah"):
        if not shutil.which(name):
            reasons.append(f"no {name}")
            continue
        asked = call(name, "info")
        if asked.returncode == 0:
            return name
        reasons.append(f"{name} does not work: {(asked.stderr.splitlines() or ['?'])[-1]}")
    pytest.skip("; ".join(reasons))


@pytest.fixture(scope="module")
def image(builder: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The CPU image, of a copy without environments and caches, which no builder need be sent."""
    context: Path = tmp_path_factory.mktemp("image")
    for name in COPIED:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, context / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, context / name)
    built = call(builder, "build", "-f", FOLDER / "Containerfile", "-t", IMAGE, context)
    assert built.returncode == 0, built.stdout[-3000:] + built.stderr[-3000:]
    yield IMAGE
    call(builder, "rmi", IMAGE)


def inside(builder: str, image: str, *command: str) -> subprocess.CompletedProcess[str]:
    if builder == "buildah":
        pytest.skip("buildah builds images, and runs none by their name")
    return call(builder, "run", "--rm", "--network", "none", image, *command)


def test_it_says_what_it_can_be_told(builder: str, image: str) -> None:
    run = inside(builder, image)
    assert run.returncode == 0, run.stderr
    assert "--output" in run.stdout


def test_it_inverts_the_sample_images(builder: str, image: str) -> None:
    samples = "import pipeline, pathlib; print(pathlib.Path(pipeline.__file__).parent / 'samples')"
    where = inside(builder, image, "python", "-c", samples).stdout.strip()
    asked = ("--input", where, "--output", "/tmp/table", "--limit", "2", "--identity", "none")
    run = inside(builder, image, "python", "jobs/invert_dataset.py", *asked)
    assert run.returncode == 0, run.stderr
    assert '"exit_code": 0' in run.stdout.splitlines()[-1]
