"""Signal handlers: the first Ctrl-C or SIGTERM stops a job; later ones do not disturb its end."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_STOPPING = (signal.SIGINT, signal.SIGTERM)


def ignore_further() -> None:
    """Ignore Ctrl-C and SIGTERM from now on.

    Sets a handler instead of SIG_IGN, which started processes would inherit.
    """
    for number in _STOPPING:
        signal.signal(number, _ignore)


def ignore_to_the_end() -> None:
    """Ignore Ctrl-C and SIGTERM until this process ends; it must not start others any more."""
    for number in _STOPPING:
        signal.signal(number, signal.SIG_IGN)


def _ignore(_signum: int, _frame: FrameType | None) -> None:
    pass


@contextmanager
def handlers_restored() -> Iterator[None]:
    """Restore the handlers of Ctrl-C and SIGTERM at the end of the block.

    After `ignore_to_the_end` in the block, both stay ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread receives signals
        return
    before = {number: signal.getsignal(number) for number in _STOPPING}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is None:  # a handler of C code, which Python cannot restore
                continue
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, handler)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Ignore Ctrl-C and SIGTERM inside the block, so that cleanup is never interrupted."""
    with handlers_restored():
        if threading.current_thread() is threading.main_thread():
            ignore_further()
        yield


class Interrupted(BaseException):
    """SIGTERM or Ctrl-C as an exception that unwinds a run."""


def _raise_interrupted(_signum: int, _frame: FrameType | None) -> None:
    ignore_further()
    raise Interrupted


def _raise_on_signals() -> None:
    for number in _STOPPING:
        signal.signal(number, _raise_interrupted)


@contextmanager
def interruptible(on_interrupt: Callable[[], None]) -> Iterator[None]:
    """End the block at Ctrl-C or SIGTERM, after calling `on_interrupt`; nothing is raised.

    Later signals are ignored until the caller restores its handlers, because the run is ending. A
    signal that arrives while an object is finalized, such as Ray Data's executor, cannot unwind the
    block: it also calls `on_interrupt`, and the run has to stop by itself or at the next signal.
    """
    _raise_on_signals()
    hook = sys.unraisablehook

    def in_finalizer(unraisable: sys.UnraisableHookArgs) -> None:
        if isinstance(unraisable.exc_value, KeyboardInterrupt | Interrupted):
            on_interrupt()
            _raise_on_signals()
        else:
            hook(unraisable)

    sys.unraisablehook = in_finalizer
    try:
        yield
    except (KeyboardInterrupt, Interrupted):
        on_interrupt()
    finally:
        ignore_further()
        sys.unraisablehook = hook


@contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """Make SIGTERM raise KeyboardInterrupt, the only exception that leaves `ray.get`.

    Further signals are ignored from then on, until the process ends.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread receives signals
        return
    before = signal.signal(signal.SIGTERM, _stop_once)
    try:
        yield
    finally:
        # Unless it was replaced meanwhile, as by a run that a first signal ended.
        if signal.getsignal(signal.SIGTERM) is _stop_once:
            signal.signal(signal.SIGTERM, before)
        elif signal.getsignal(signal.SIGTERM) is _ignore_repeated:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _stop_once(number: int, frame: FrameType | None) -> None:
    # A handler instead of SIG_IGN, which processes started from now on would inherit.
    signal.signal(signal.SIGTERM, _ignore_repeated)
    signal.default_int_handler(number, frame)


def _ignore_repeated(_signum: int, _frame: FrameType | None) -> None:
    pass


@contextmanager
def forwarding_sigterm(stop: threading.Event) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Set `stop` at SIGTERM or Ctrl-C and forward a SIGTERM to the process in the list."""
    running: list[subprocess.Popen[bytes]] = []

    def on_signal(number: int, _frame: FrameType | None) -> None:
        stop.set()
        # A terminal sends Ctrl-C to the whole group, the running process included.
        if number == signal.SIGTERM and running and running[0].poll() is None:
            running[0].terminate()

    with handlers_restored():
        for number in _STOPPING:
            signal.signal(number, on_signal)
        yield running
