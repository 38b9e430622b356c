"""Run a job again after it failed: `--attempts N`."""

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
    attempts: int,  # runs in total, at least 1
    *,
    first_wait_s: float = FIRST_WAIT_S,  # before the second run; doubled each time, 300 s at most
) -> int:
    """Run `command` in a separate process until it succeeds; return its last exit code.

    Exit codes 0 (done) and 2 (wrong request) end the attempts, and so does SIGTERM or Ctrl-C, which
    the running process receives too. After any other end, including death by another signal, it is
    run again. Streams are inherited, so the last line is that of the last run.
    """
    stop = threading.Event()
    wait = first_wait_s
    for attempt in range(1, attempts + 1):
        with forwarding_sigterm(stop) as started:
            started.append(subprocess.Popen(command))
            if stop.is_set():  # the signal arrived while the process was being started
                started[0].terminate()
            code = started[0].wait()
            if code in (0, WRONG_REQUEST) or stop.is_set() or attempt == attempts:
                break
            _LOGGER.warning(
                "attempt %d of %d ended with exit code %d: trying again in %g s, continuing the "
                "table",
                attempt,
                attempts,
                code,
                wait,
            )
            if stop.wait(wait):
                break
            wait = min(2 * wait, LONGEST_WAIT_S)
    return code if code in (0, WRONG_REQUEST) else 1
