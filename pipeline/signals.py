"""Ctrl-C and SIGTERM: the first one stops a job, further ones change nothing while it ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_STOPPING = (signal.SIGINT, signal.SIGTERM)


def ignore_further(_signum: int = 0, _frame: FrameType | None = None) -> None:
    """Ignore Ctrl-C and SIGTERM from here on; as a handler, also this one.

    By a handler and not by SIG_IGN, which the processes that are started would inherit.
    """
    for number in _STOPPING:
        signal.signal(number, _ignore)


def ignore_to_the_end() -> None:
    """Ignore Ctrl-C and SIGTERM until this process ends, which starts no other from here on."""
    for number in _STOPPING:
        signal.signal(number, signal.SIG_IGN)


def _ignore(_signum: int, _frame: FrameType | None) -> None:
    pass


@contextmanager
def handlers_restored() -> Iterator[None]:
    """Put the handlers of Ctrl-C and SIGTERM back at the block's end, whatever it set.

    What `ignore_to_the_end` ignores in the block stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # which gets no signals
        return
    before = {number: signal.getsignal(number) for number in _STOPPING}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is None:  # one of C code, which Python cannot put back
                continue
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, handler)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Ignore Ctrl-C and SIGTERM for the length of the block: what is ended there ends whole."""
    with handlers_restored():
        if threading.current_thread() is threading.main_thread():
            ignore_further()
        yield


class Interrupted(BaseException):
    """SIGTERM or Ctrl-C, in the form that unwinds a run."""


def _raise_interrupted(_signum: int, _frame: FrameType | None) -> None:
    ignore_further()
    raise Interrupted


def _raise_on_signals() -> None:
    for number in _STOPPING:
        signal.signal(number, _raise_interrupted)


@contextmanager
def interruptible(on_interrupt: Callable[[], None]) -> Iterator[None]:
    """End the block at Ctrl-C or SIGTERM, after `on_interrupt`; nothing is raised.

    Further signals are ignored until the caller restores its handlers: the run is ending. One that
    comes while an object is finalized, such as Ray Data's executor, gets no further than that: it
    calls `on_interrupt` too, and the run has to stop by itself, or stops at the next signal.
    """
    _raise_on_signals()
    hook = sys.unraisablehook

    def in_finalizer(unraisable: sys.UnraisableHookArgs) -> None:
        if isinstance(unraisable.exc_value, KeyboardInterrupt | Interrupted | SystemExit):
            on_interrupt()
            _raise_on_signals()
        else:
            hook(unraisable)

    sys.unraisablehook = in_finalizer
    try:
        yield
    except (KeyboardInterrupt, Interrupted, SystemExit):
        # SystemExit: while Ray starts, SIGTERM finds its handler in place of ours.
        on_interrupt()
    finally:
        ignore_further()
        sys.unraisablehook = hook


@contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """Let SIGTERM unwind the block as Ctrl-C does: no other exception gets out of `ray.get`.

    Further ones are ignored from there on, until the process ends.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # which gets no signals
        return
    before = signal.signal(signal.SIGTERM, _stop_once)
    try:
        yield
    finally:
        # Not where it was taken away meanwhile, as by a run that a first signal ended.
        if signal.getsignal(signal.SIGTERM) is _stop_once:
            signal.signal(signal.SIGTERM, before)
        elif signal.getsignal(signal.SIGTERM) is _ignore_repeated:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _stop_once(number: int, frame: FrameType | None) -> None:
    # By a handler and not by SIG_IGN, which processes that are started meanwhile would inherit.
    signal.signal(signal.SIGTERM, _ignore_repeated)
    signal.default_int_handler(number, frame)


def _ignore_repeated(_signum: int, _frame: FrameType | None) -> None:
    pass


@contextmanager
def forwarding_sigterm(stop: threading.Event) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Set `stop` at SIGTERM or Ctrl-C and hand a SIGTERM on to the process in the list."""
    running: list[subprocess.Popen[bytes]] = []

    def on_signal(number: int, _frame: FrameType | None) -> None:
        stop.set()
        # A terminal sends Ctrl-C to the whole group, the running process included.
        if number == signal.SIGTERM and running and running[0].poll() is None:
            running[0].terminate()

    before = {number: signal.signal(number, on_signal) for number in _STOPPING}
    try:
        yield running
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
