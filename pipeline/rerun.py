"""Run a job again after it failed: `--attempts N`."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

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
        with _forwarding(stop) as started:
            started.append(subprocess.Popen(command))
            if stop.is_set():  # the signal arrived while the process was being started
                started[0].terminate()
            code = started[0].wait()
            if code in (0, WRONG_REQUEST) or stop.is_set() or attempt == attempts:
                break
            print(
                f"attempt {attempt} of {attempts} ended with exit code {code}: "
                f"trying again in {wait:g} s, continuing the table",
                file=sys.stderr,
                flush=True,
            )
            if stop.wait(wait):
                break
            wait = min(2 * wait, LONGEST_WAIT_S)
    return code if code in (0, WRONG_REQUEST) else 1


@contextmanager
def _forwarding(stop: threading.Event) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Set `stop` at SIGTERM or Ctrl-C and forward a SIGTERM to the process in the list."""
    running: list[subprocess.Popen[bytes]] = []

    def on_signal(number: int, frame: FrameType | None) -> None:
        del frame
        stop.set()
        # A terminal sends Ctrl-C to the whole group, the running process included.
        if number == signal.SIGTERM and running and running[0].poll() is None:
            running[0].terminate()

    before = {
        number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield running
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
