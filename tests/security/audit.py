"""Ask the index's advisory database about every pinned version: `python -m tests.security.audit`.

`pip-audit` passes over packages that the index has no advisories for and says "No known
vulnerabilities found" even where it could look up none. So the packages that were audited are
counted here. Exit code 1 if one of them has a known vulnerability; the last line is JSON.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

PINS = Path(__file__).resolve().parents[2] / ".constraints.txt"
COMMAND = ("-r", str(PINS), "--no-deps", "--disable-pip", "--format", "json")


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
        print("not audited: pip-audit is not installed")
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
    """Ask, count, tell."""
    found = ask()
    if found is None:
        return 0
    counts = summary(found)
    for package in counts["vulnerable"]:
        print(f"{package['name']} {package['version']}: {', '.join(package['ids'])}")
    if not counts["audited"]:
        print("not audited: the index has no advisories for any of the packages")
    print(json.dumps(counts))
    return 1 if counts["vulnerable"] else 0


if __name__ == "__main__":
    sys.exit(main())
