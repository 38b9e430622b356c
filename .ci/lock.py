"""Write `.locked.txt`: every pinned package with the SHA-256 of the file that pip would install.

    pip install --dry-run --ignore-installed --no-deps --report report.json -r .constraints.txt
    python .ci/lock.py report.json

A report of some packages alone (`NAME==VERSION` in place of `-r ...`) updates their lines. The
hashes are those of the files for Linux on x86-64, Python 3.11 and the CPU build of torch; with
other files `pip install --require-hashes --no-deps -r .locked.txt` stops, as it should.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

PINS, LOCK = Path(".constraints.txt"), Path(".locked.txt")


def plain(line: str) -> str:
    """The package of a line `name==version ...`, as indexes compare names."""
    return re.sub(r"[-_.]+", "-", line.split("==")[0]).lower()


def main(report: str) -> None:
    """Merge the report's hashes into the lock; leave out what is not pinned."""
    lines = {plain(line): line for line in LOCK.read_text().splitlines()} if LOCK.exists() else {}
    for item in json.loads(Path(report).read_text())["install"]:
        name, version = item["metadata"]["name"], item["metadata"]["version"].split("+")[0]
        digest = item["download_info"]["archive_info"]["hashes"]["sha256"]
        lines[plain(name)] = f"{name}=={version} --hash=sha256:{digest}"
    pinned = {plain(line) for line in PINS.read_text().splitlines()}
    LOCK.write_text("".join(f"{lines[name]}\n" for name in sorted(lines) if name in pinned))


if __name__ == "__main__":
    main(sys.argv[1])
