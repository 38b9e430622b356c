"""Check that every pinned package has a hash, and look up known vulnerabilities if possible.

`python -m tests.security.audit`. The hashes are in `.locked.txt` and need no network. `pip-audit`
skips packages for which the index has no advisories and prints "No known vulnerabilities found"
even if it could look up none. Therefore the audited packages are counted here. Exit code 1 if a
package has no hash or a known vulnerability; the last line is JSON.
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
    """Return the pins (`name==version` per line) without a hash in `lock`."""
    locked = set(re.findall(r"^(\S+==\S+) --hash=sha256:[0-9a-f]{64}$", lock, re.MULTILINE))
    return [pin for pin in pins.split() if pin not in locked]


def summary(report: dict[str, Any]) -> dict[str, Any]:
    """Return counts from `pip-audit`'s JSON, and the vulnerable packages with their advisories."""
    packages = report["dependencies"]
    vulnerable = [
        {
            **{key: package[key] for key in ("name", "version")},
            "ids": [v["id"] for v in package["vulns"]],
        }
        for package in packages
        if package.get("vulns")
    ]
    audited = sum("vulns" in package for package in packages)
    return {"pinned": len(packages), "audited": audited, "vulnerable": vulnerable}


def pip_audit_report() -> dict[str, Any] | None:
    """Return the report of `pip-audit`; None without it or without access to its database."""
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
        report: dict[str, Any] = json.loads(run.stdout)
    except ValueError:
        print(f"not audited: {run.stderr.strip().splitlines()[-1:] or 'no answer'}")
        return None
    return report


def main() -> int:
    """Check the hashes, run the audit, print the results, and return the exit code."""
    without = unlocked(PINS.read_text(), LOCK.read_text())
    for pin in without:
        print(f"{pin}: no hash in {LOCK.name}; .ci/lock.py writes it")
    report = pip_audit_report()
    counts = summary(report or {"dependencies": []})
    for package in counts["vulnerable"]:
        print(f"{package['name']} {package['version']}: {', '.join(package['ids'])}")
    if report is not None and not counts["audited"]:
        print("not audited: the index has no advisories for any of the packages")
    counts["pinned"] = len(PINS.read_text().split())
    print(json.dumps({**counts, "unlocked": without}))
    return 1 if counts["vulnerable"] or without else 0


if __name__ == "__main__":
    sys.exit(main())
