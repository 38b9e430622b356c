"""Installed packages equal the pinned ones, and every pin has a hash."""

from __future__ import annotations

import importlib.metadata
import json
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import tests.security.audit as audit

ROOT = Path(__file__).resolve().parents[2]
_PIN = re.compile(r"([A-Za-z0-9._-]+)==(\S+)")


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins() -> dict[str, str]:
    """Return the versions in `.constraints.txt` by name."""
    lines = (ROOT / ".constraints.txt").read_text().split("\n")
    versions = {}
    for line in filter(None, (line.split("#")[0].strip() for line in lines)):
        match = _PIN.fullmatch(line)
        assert match, f"'{line}' pins nothing"
        versions[_plain(match[1])] = match[2]
    return versions


def needed() -> set[str]:
    """Return the names of the project's dependencies on this platform, direct and indirect."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    waiting = [
        Requirement(text)
        for text in [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    ]
    names: set[str] = set()
    done: set[tuple[str, str]] = set()
    while waiting:
        requirement = waiting.pop()
        name = _plain(requirement.name)
        names.add(name)
        for extra in {"", *requirement.extras}:
            if (name, extra) in done:
                continue
            done.add((name, extra))
            requirements = map(Requirement, importlib.metadata.requires(name) or [])
            waiting += [
                required
                for required in requirements
                if required.marker is None or required.marker.evaluate({"extra": extra})
            ]
    return names


def test_every_dependency_is_pinned() -> None:
    assert sorted(needed() - pins().keys()) == []


def test_dependencies_of_the_image_alone_are_pinned() -> None:
    """Packages that are not installed here, so that `needed` cannot see them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert [name for name in project["optional-dependencies"]["gcp"] if name not in pins()] == []
    parts = ("google-cloud-storage", "google-cloud-storage-control", "google-auth-oauthlib")
    assert {*parts, "decorator"} <= pins().keys(), "dependencies of gcsfs 2026.10"


def test_installed_versions_equal_the_pins() -> None:
    pinned = pins()
    installed = {name: importlib.metadata.version(name) for name in needed()}
    # Builds of one release may differ: 2.13.0+cpu, 2.13.0+cu130.
    other = {
        name: (version, pinned[name])
        for name, version in installed.items()
        if name in pinned and version.split("+")[0] != pinned[name].split("+")[0]
    }
    assert other == {}


def test_every_pin_has_a_hash() -> None:
    locked = {}
    for line in (ROOT / ".locked.txt").read_text().splitlines():
        match = re.fullmatch(r"([A-Za-z0-9._-]+)==(\S+) --hash=sha256:[0-9a-f]{64}", line)
        assert match, line
        locked[_plain(match[1])] = match[2]
    assert locked == pins()


def test_skipped_packages_do_not_count_as_audited() -> None:
    report = {
        "dependencies": [
            {"name": "a", "version": "1", "vulns": []},
            {"name": "b", "version": "2", "vulns": [{"id": "CVE-1"}, {"id": "CVE-2"}]},
            {"name": "c", "skip_reason": "not found on the index"},
        ]
    }
    assert audit.summary(report) == {
        "pinned": 3,
        "audited": 2,
        "vulnerable": [{"name": "b", "version": "2", "ids": ["CVE-1", "CVE-2"]}],
    }


def test_missing_hash_fails_the_audit_without_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(audit, "pip_audit_report", lambda: None)
    assert audit.main() == 0
    (tmp_path / ".locked.txt").write_text(audit.LOCK.read_text().replace("numpy==2", "numpy==1"))
    monkeypatch.setattr(audit, "LOCK", tmp_path / ".locked.txt")
    assert audit.main() == 1
    *_, message, last = capsys.readouterr().out.splitlines()
    pin = f"numpy=={pins()['numpy']}"
    assert message.startswith(f"{pin}: no hash in .locked.txt")
    counts = json.loads(last)
    assert (counts["unlocked"], counts["audited"], counts["pinned"]) == ([pin], 0, len(pins()))


def test_packages_named_in_the_containerfile_are_pinned() -> None:
    text = (ROOT / "cluster" / "Containerfile").read_text()
    named = dict(_PIN.findall(next(line for line in text.splitlines() if "boto3==" in line)))
    assert {name: pins().get(name) for name in named} == named
    assert {"s3transfer", "httplib2", "uritemplate", "google-auth-httplib2"} <= pins().keys()
