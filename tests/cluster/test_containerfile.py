from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from ray.autoscaler._private.command_runner import _with_interactive

from tests.cluster.configurations import EVERY, FOLDER, ROOT, load

PATH = FOLDER / "Containerfile"


def instructions() -> list[tuple[str, str]]:
    """Return (instruction, arguments), with continued lines joined and comments removed."""
    lines = [line for line in PATH.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    return [
        (line.split(maxsplit=1)[0], line.split(maxsplit=1)[1])
        for line in joined.splitlines()
        if line.strip()
    ]


def last_stage() -> list[tuple[str, str]]:
    steps = instructions()
    first = max(index for index, (name, _) in enumerate(steps) if name == "FROM")
    return steps[first:]


@pytest.fixture
def hadolint() -> str:
    installed = Path(sys.executable).with_name("hadolint")
    path = str(installed) if installed.exists() else shutil.which("hadolint")
    if path is None:
        pytest.skip("hadolint is not installed")
    return path


def test_hadolint_finds_no_problem(hadolint: str) -> None:
    run = subprocess.run(
        [hadolint, "--no-color", str(PATH)], capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stdout) == (0, "")


def test_image_runs_as_a_numeric_non_root_user() -> None:
    users = [arguments for name, arguments in last_stage() if name == "USER"]
    assert users == ["1000:1000"], "a number, since Kubernetes cannot resolve a name"


def test_last_stage_has_no_build_tools() -> None:
    commands = " ".join(arguments for name, arguments in last_stage() if name == "RUN")
    assert re.search(r"\b(gcc|g\+\+|make|cmake|build-essential)\b", commands) is None
    assert re.search(r"\b(pip|uv) (pip )?install\b", commands) is None
    assert "pip uninstall --yes pip setuptools wheel" in commands


def test_installed_packages_are_pinned() -> None:
    installs = [text for name, text in instructions() if name == "RUN" and "pip install" in text]
    assert len(installs) == 2
    for text in installs:
        packages = re.findall(r"(?<= )[a-z][\w-]*(?:==[\d.]+)?(?= |$)", text.split("install", 1)[1])
        pinned = [package for package in packages if "==" in package]
        assert pinned, text
    assert "-c .constraints.txt '.[gcp,heic,reports,train]'" in installs[1], "gs:// needs gcsfs"
    (image,) = re.findall(r"PYTHON_IMAGE=(\S+)", PATH.read_text())[-1:]
    assert re.search(r":3\.11\.\d+-slim-\w+$", dict(instructions_args())["PYTHON_IMAGE"]), image


def test_image_installs_the_default_extras() -> None:
    (extras,) = re.findall(r"'\.\[(.*)\]'", PATH.read_text())
    defined = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert {"train", "reports", "heic"} <= set(extras.split(",")) <= set(defined)


def instructions_args() -> list[tuple[str, str]]:
    return [
        (text.split("=", 1)[0], text.split("=", 1)[1])
        for name, text in instructions()
        if name == "ARG" and "=" in text
    ]


def test_boto3_matches_the_pinned_botocore() -> None:
    (botocore,) = re.findall(r"^botocore==(.*)$", (ROOT / ".constraints.txt").read_text(), re.M)
    assert f"boto3=={botocore}" in PATH.read_text()


def test_copied_files_exist() -> None:
    for name, arguments in instructions():
        sources = [part for part in arguments.split()[:-1] if not part.startswith("--")]
        if name == "COPY" and "--from=" not in arguments:
            assert [source for source in sources if not (ROOT / source).exists()] == []


def test_login_shells_of_ray_up_find_ray(tmp_path: Path) -> None:
    (commands,) = [text for name, text in last_stage() if name == "RUN"]
    ours = tmp_path / "bin"
    ours.mkdir()
    (ours / "ray").write_text("#!/bin/sh\necho the Ray of the image\n")
    (ours / "ray").chmod(0o755)
    # Like Debian's /etc/profile: set PATH, then read profile.d.
    (tmp_path / ".bash_profile").write_text(
        f"PATH=/usr/bin:/bin\nif [ -r {tmp_path}/restyle.sh ]; then . {tmp_path}/restyle.sh; fi\n"
    )
    (tmp_path / ".bashrc").touch()
    for written in re.findall(r"&& (echo .* > /etc/profile\.d/restyle\.sh)", commands):
        here = written.replace("/etc/profile.d", str(tmp_path)).replace(
            "/opt/restyle/bin", str(ours)
        )
        subprocess.run(here.replace("/opt/restyle/bin", str(ours)), shell=True, check=True)
    run = subprocess.run(
        " ".join(_with_interactive("ray --version")),
        shell=True,
        env={"HOME": str(tmp_path), "PATH": f"{ours}:/usr/bin:/bin"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,  # an interactive shell takes over the terminal
    )
    assert (run.returncode, run.stdout) == (0, "the Ray of the image\n"), run.stderr


def test_nvidia_runtime_variables_are_set() -> None:
    set_to = " ".join(text for name, text in last_stage() if name == "ENV").split()
    assert "NVIDIA_VISIBLE_DEVICES=all" in set_to, "unset, --runtime=nvidia adds no GPU"
    assert "NVIDIA_DRIVER_CAPABILITIES=compute,utility" in set_to


def test_all_clusters_use_this_image() -> None:
    version = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    assert version
    for name in EVERY:
        if name != "run.yaml":
            assert f"restyle-pipeline:{version[1]}-cuda" in (FOLDER / name).read_text(), name
    assert load("aws.yaml")["docker"]["image"] == load("gcp.yaml")["docker"]["image"]
