"""Container image, built and run where a builder is available."""

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
    """Return the first of docker, podman and buildah that works here; skips without one."""
    reasons = []
    for name in ("docker", "podman", "buildah"):
        if not shutil.which(name):
            reasons.append(f"no {name}")
            continue
        info = call(name, "info")
        if info.returncode == 0:
            return name
        reasons.append(f"{name} does not work: {(info.stderr.splitlines() or ['?'])[-1]}")
    pytest.skip("; ".join(reasons))


@pytest.fixture(scope="module")
def image(builder: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Build the CPU image from a copy of the sources without caches."""
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
        pytest.skip("buildah cannot run an image by its name")
    return call(builder, "run", "--rm", "--network", "none", image, *command)


def test_image_prints_the_help_of_the_job(builder: str, image: str) -> None:
    run = inside(builder, image)
    assert run.returncode == 0, run.stderr
    assert "--output" in run.stdout


def test_image_inverts_the_sample_images(builder: str, image: str) -> None:
    samples = "import pipeline, pathlib; print(pathlib.Path(pipeline.__file__).parent / 'samples')"
    folder = inside(builder, image, "python", "-c", samples).stdout.strip()
    flags = ("--input", folder, "--output", "/tmp/table", "--limit", "2", "--identity", "none")
    run = inside(builder, image, "python", "jobs/invert_dataset.py", *flags)
    assert run.returncode == 0, run.stderr
    assert '"exit_code": 0' in run.stdout.splitlines()[-1]
