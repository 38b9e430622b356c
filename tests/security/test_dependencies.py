"""What is installed is what was pinned."""

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
    assert audit.summary(found) == {
        "pinned": 3,
        "audited": 2,
        "vulnerable": [{"name": "b", "version": "2", "ids": ["CVE-1", "CVE-2"]}],
    }


def test_a_pin_without_a_hash_fails_the_audit_where_nobody_can_be_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(audit, "ask", lambda: None)
    assert audit.main() == 0
    (tmp_path / ".locked.txt").write_text(audit.LOCK.read_text().replace("numpy==2", "numpy==1"))
    monkeypatch.setattr(audit, "LOCK", tmp_path / ".locked.txt")
    assert audit.main() == 1
    *_, told, last = capsys.readouterr().out.splitlines()
    pin = f"numpy=={pins()['numpy']}"
    assert told.startswith(f"{pin}: no hash in .locked.txt")
    counts = json.loads(last)
    assert (counts["unlocked"], counts["audited"], counts["pinned"]) == ([pin], 0, len(pins()))


def test_what_the_image_installs_by_name_is_pinned_with_what_it_needs() -> None:
    text = (ROOT / "cluster" / "Containerfile").read_text()
    named = dict(_PIN.findall(next(line for line in text.splitlines() if "boto3==" in line)))
    assert {name: pins().get(name) for name in named} == named
    assert {"s3transfer", "httplib2", "uritemplate", "google-auth-httplib2"} <= pins().keys()
