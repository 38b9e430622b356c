"""Look for a hash of every pinned package, and for known vulnerabilities where that can be asked.

`python -m tests.security.audit`. The hashes are in `.locked.txt` and need no network. `pip-audit`
passes over packages that the index has no advisories for and says "No known vulnerabilities found"
even where it could look up none. So the packages that were audited are counted here. Exit code 1 if
a package has no hash or a known vulnerability; the last line is JSON.
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PINS, LOCK = ROOT / ".constraints.txt", ROOT / ".locked.txt"
COMMAND = ("-r", str(PINS), "--no-deps", "--disable-pip", "--format", "json")


def unlocked(pins: str, lock: str) -> list[str]:
    """The pins, `name==version` a line, of which `lock` has no hash."""
    locked = set(re.findall(r"^(\S+==\S+) --hash=sha256:[0-9a-f]{64}$", lock, re.MULTILINE))
    return [pin for pin in pins.split() if pin not in locked]


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """Counts of `pip-audit`'s JSON, and what is vulnerable: name, version, advisories."""
    packages = found["dependencies"]
    vulnerable = [
        {**{key: one[key] for key in ("name", "version")}, "ids": [v["id"] for v in one["vulns"]]}
        for one in packages
        if one.get("vulns")
    ]
    audited = sum("vulns" in one for one in packages)
    return {"pinned": len(packages), "audited": audited, "vulnerable": vulnerable}


def ask() -> dict[str, Any] | None:
    """What `pip-audit` says; None if it is not installed or cannot reach its database."""
    if importlib.util.find_spec("pip_audit") is None:
        print("not audited: no pip-audit, which the extra `audit` installs")
        return None
    run = subprocess.run(
        [sys.executable, "-m", "pip_audit", *COMMAND, "--progress-spinner", "off"],
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        found: dict[str, Any] = json.loads(run.stdout)
    except ValueError:
        print(f"not audited: {run.stderr.strip().splitlines()[-1:] or 'no answer'}")
        return None
    return found


def main() -> int:
    """Look, ask, count, tell."""
    without = unlocked(PINS.read_text(), LOCK.read_text())
    for pin in without:
        print(f"{pin}: no hash in {LOCK.name}; .ci/lock.py writes it")
    found = ask()
    counts = summary(found or {"dependencies": []})
    for package in counts["vulnerable"]:
        print(f"{package['name']} {package['version']}: {', '.join(package['ids'])}")
    if found is not None and not counts["audited"]:
        print("not audited: the index has no advisories for any of the packages")
    counts["pinned"] = len(PINS.read_text().split())
    print(json.dumps({**counts, "unlocked": without}))
    return 1 if counts["vulnerable"] or without else 0


if __name__ == "__main__":
    sys.exit(main())
