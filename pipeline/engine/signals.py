"""Ctrl-C and SIGTERM while a run ends: the first one stops it, further ones change nothing."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
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
