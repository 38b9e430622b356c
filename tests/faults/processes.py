"""Processes by their position in the tree: only descendants of this process are signalled."""

from __future__ import annotations

import os
import signal
import time
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path


def _parents() -> dict[int, int]:
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            # The name, in parentheses, may hold spaces; the parent is the second field after it.
            stat = (folder / "stat").read_text()
            parents[int(folder.name)] = int(stat.rpartition(")")[2].split()[1])
    return parents


def descendants(root: int) -> list[int]:
    """Return the processes below `root`, parents before their children."""
    children: dict[int, list[int]] = defaultdict(list)
    for pid, parent in _parents().items():
        children[parent].append(pid)
    ordered, waiting = [], [root]
    while waiting:
        below = children[waiting.pop()]
        ordered += below
        waiting += below
    return ordered


def title(pid: int) -> str:
    """Return the command line, where Ray's workers put their task; empty if it ended."""
    try:
        return (Path("/proc") / str(pid) / "cmdline").read_text(errors="replace").replace("\0", " ")
    except OSError:
        return ""


def named(roots: Iterable[int], text: str) -> list[int]:
    """Return the descendants of `roots` with `text` in their title."""
    return [pid for root in roots for pid in descendants(root) if text in title(pid)]


def send(pids: Iterable[int], number: int) -> None:
    """Signal each process that still exists."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def is_stopped(pid: int) -> bool:
    """Return whether SIGSTOP has taken effect."""
    try:
        stat = (Path("/proc") / str(pid) / "stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] == "T"


def kill_tree(root: int) -> None:
    """Kill `root`, which this process started, and all its descendants."""
    pids = [*descendants(root), root]
    send(pids, signal.SIGKILL)


def wait_until_stopped(pid: int, seconds: float) -> bool:
    """Wait for `is_stopped` and return whether it became true."""
    deadline = time.monotonic() + seconds
    while not is_stopped(pid):
        if time.monotonic() > deadline or not title(pid):
            return False
        time.sleep(0.02)
    return True
