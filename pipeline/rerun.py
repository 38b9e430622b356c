"""Runs a job again when it failed: what `--attempts N` asks for."""

from __future__ import annotations

import logging
import subprocess
import threading
from collections.abc import Sequence

from pipeline.signals import forwarding_sigterm

_LOGGER = logging.getLogger(__name__)

FIRST_WAIT_S, LONGEST_WAIT_S = 10.0, 300.0
WRONG_REQUEST = 2


def run_again(
    command: Sequence[str],
    attempts: int,  # how often it is run in all, 1 or more
    *,
    first_wait_s: float = FIRST_WAIT_S,  # before the second run; doubled each time, 300 s at most
) -> int:
    """Run `command` in a process of its own until it is done; return its last exit code.

    Exit code 0 (done) and 2 (the request is wrong) end it, and so does SIGTERM or Ctrl-C, which
    the running process gets too. Every other end, also by a signal that nobody asked for, is
    followed by another run. Streams are inherited, so the last line is that of the last run.
    """
    stop = threading.Event()
    wait = first_wait_s
    for attempt in range(1, attempts + 1):
        with forwarding_sigterm(stop) as started:
            started.append(subprocess.Popen(command))
            if stop.is_set():  # the signal came while the process was being started
                started[0].terminate()
            code = started[0].wait()
            if code in (0, WRONG_REQUEST) or stop.is_set() or attempt == attempts:
                break
            _LOGGER.warning(
                "attempt %d of %d ended with exit code %d: again in %g s, where the table ends",
                attempt,
                attempts,
                code,
                wait,
            )
            if stop.wait(wait):
                break
            wait = min(2 * wait, LONGEST_WAIT_S)
    return code if code in (0, WRONG_REQUEST) else 1
