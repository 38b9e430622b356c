"""What is installed is what was pinned."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

from tests.security.audit import summary

ROOT = Path(__file__).resolve().parents[2]
_PIN = re.compile(r"([A-Za-z0-9._-]+)==(\S+)")


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins() -> dict[str, str]:
    """Name to version, of `.constraints.txt`."""
    lines = (ROOT / ".constraints.txt").read_text().split("\n")
    found = {}
    for line in filter(None, (line.split("#")[0].strip() for line in lines)):
        match = _PIN.fullmatch(line)
        assert match, f"'{line}' pins nothing"
        found[_plain(match[1])] = match[2]
    return found


def needed() -> set[str]:
    """What the project needs on this platform, and what that needs in turn."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    waiting = [
        Requirement(text)
        for text in [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    ]
    found: set[str] = set()
    seen: set[tuple[str, str]] = set()
    while waiting:
        requirement = waiting.pop()
        name = _plain(requirement.name)
        found.add(name)
        for extra in {"", *requirement.extras}:
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            wanted = map(Requirement, importlib.metadata.requires(name) or [])
            waiting += [
                each
                for each in wanted
                if each.marker is None or each.marker.evaluate({"extra": extra})
            ]
    return found


def test_every_package_that_is_needed_is_pinned() -> None:
    assert sorted(needed() - pins().keys()) == []


def test_what_the_image_alone_installs_is_pinned_too() -> None:
    """`needed` cannot ask what is not installed here."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert [name for name in project["optional-dependencies"]["gcp"] if name not in pins()] == []
    parts = ("google-cloud-storage", "google-cloud-storage-control", "google-auth-oauthlib")
    assert {*parts, "decorator"} <= pins().keys(), "of gcsfs 2026.10"


def test_what_is_installed_is_what_is_pinned() -> None:
    pinned = pins()
    installed = {name: importlib.metadata.version(name) for name in needed()}
    # A build of the same release: 2.13.0+cpu, 2.13.0+cu130.
    other = {
        name: (version, pinned[name])
        for name, version in installed.items()
        if name in pinned and version.split("+")[0] != pinned[name].split("+")[0]
    }
    assert other == {}


def test_the_lock_has_a_hash_for_every_pin() -> None:
    locked = {}
    for line in (ROOT / ".locked.txt").read_text().splitlines():
        match = re.fullmatch(r"([A-Za-z0-9._-]+)==(\S+) --hash=sha256:[0-9a-f]{64}", line)
        assert match, line
        locked[_plain(match[1])] = match[2]
    assert locked == pins()


def test_a_package_that_was_passed_over_does_not_count_as_audited() -> None:
    found = {
        "dependencies": [
            {"name": "a", "version": "1", "vulns": []},
            {"name": "b", "version": "2", "vulns": [{"id": "CVE-1"}, {"id": "CVE-2"}]},
            {"name": "c", "skip_reason": "not found on the index"},
        ]
    }
    assert summary(found) == {
        "pinned": 3,
        "audited": 2,
        "vulnerable": [{"name": "b", "version": "2", "ids": ["CVE-1", "CVE-2"]}],
    }
