"""Processes by their place in the tree: what is signalled is always a descendant of ours."""

from __future__ import annotations

import os
import signal
import time
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path


def _parents() -> dict[int, int]:
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            # The name, in parentheses, may hold spaces; the parent is the second field after it.
            stat = (folder / "stat").read_text()
            found[int(folder.name)] = int(stat.rpartition(")")[2].split()[1])
    return found


def descendants(root: int) -> list[int]:
    """The processes below `root`, parents before their children."""
    children: dict[int, list[int]] = defaultdict(list)
    for pid, parent in _parents().items():
        children[parent].append(pid)
    found, waiting = [], [root]
    while waiting:
        below = children[waiting.pop()]
        found += below
        waiting += below
    return found


def title(pid: int) -> str:
    """The command line, as Ray's workers set it to say what they do; empty if it ended."""
    try:
        return (Path("/proc") / str(pid) / "cmdline").read_text(errors="replace").replace("\0", " ")
    except OSError:
        return ""


def named(roots: Iterable[int], text: str) -> list[int]:
    """Descendants of `roots` with `text` in their title."""
    return [pid for root in roots for pid in descendants(root) if text in title(pid)]


def send(pids: Iterable[int], number: int) -> None:
    """Signal each process that is still there."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def is_stopped(pid: int) -> bool:
    """Whether SIGSTOP has taken hold."""
    try:
        stat = (Path("/proc") / str(pid) / "stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] == "T"


def kill_tree(root: int) -> None:
    """End `root`, which we started, and all below it."""
    pids = [*descendants(root), root]
    send(pids, signal.SIGKILL)


def wait_until_stopped(pid: int, seconds: float) -> bool:
    """Wait for `is_stopped`; whether it came to that."""
    deadline = time.monotonic() + seconds
    while not is_stopped(pid):
        if time.monotonic() > deadline or not title(pid):
            return False
        time.sleep(0.02)
    return True
