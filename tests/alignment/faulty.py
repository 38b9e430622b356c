"""An aligner that does to its process what a content names: for the tests of isolation."""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pipeline.alignment import Aligner, Alignment, AlignmentSettings


class FaultyAligner:
    """Contents that begin with `!` are orders; all others are images, taken as prealigned."""

    def __init__(self, settings: AlignmentSettings) -> None:
        self.settings = settings
        self.aligner = Aligner(replace(settings, prealigned=True))

    def align(self, content: bytes) -> Alignment:
        """Obey, or align."""
        order, _, argument = content.partition(b" ")
        if order == b"!segfault":
            ctypes.string_at(0)
        elif order == b"!exit":
            os._exit(int(argument))
        elif order == b"!sleep":
            time.sleep(float(argument))
        elif order in _CALLS:
            _CALLS[order](argument.decode())
        elif order == b"!memory":
            bytearray(int(argument))
        elif order == b"!bug":
            raise KeyError(argument.decode())
        elif order == b"!die_once":
            marker = Path(argument.decode())
            if not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return Alignment([])
        elif order == b"!answer":
            _answer(*map(int, argument.split()))
        return self.aligner.align(content)


def _hold(seconds: str) -> None:
    """Hang, and keep the interpreter's lock."""
    ctypes.PyDLL(None).sleep(int(seconds))


def _tell(file: str) -> None:
    """Write the process id into a file that is whole when it is there."""
    half = Path(f"{file}.half")
    half.write_text(str(os.getpid()))
    half.rename(file)


def _tell_and_hold(file: str) -> None:
    _tell(file)
    _hold("600")


def _ring(number: str) -> None:
    """Send the parent a signal while it waits for this row."""
    os.kill(os.getppid(), int(number))
    time.sleep(600)


_CALLS: dict[bytes, Callable[[str], None]] = {
    b"!hold": _hold,
    b"!tell": _tell,
    b"!tell_and_hold": _tell_and_hold,
    b"!ring": _ring,
}


def _answer(announced: int, end: int = signal.SIGKILL) -> None:
    """Announce a message, send ten bytes of it and be ended; live on where it has none."""
    os.write(int(sys.argv[1]), struct.pack("!i", announced) + b"x" * min(announced, 10))
    if announced:
        os.kill(os.getpid(), end)
    time.sleep(600)


def curt(settings: AlignmentSettings) -> FaultyAligner:
    """A factory whose process dies while it says that it is ready."""
    _answer(1000)
    return FaultyAligner(settings)


def stuck(settings: AlignmentSettings) -> FaultyAligner:
    """A factory whose process hangs while it says that it is ready."""
    _answer(1000, signal.SIGSTOP)
    return FaultyAligner(settings)


class UnbuildableAligner:
    """Fails before the first row."""

    def __init__(self, settings: AlignmentSettings) -> None:
        raise FileNotFoundError(f"no model for {settings.faces}")

    def align(self, content: bytes) -> Alignment:
        """Never reached."""
        raise AssertionError(content)


def abrupt(settings: AlignmentSettings) -> UnbuildableAligner:
    """A factory whose process ends while it starts."""
    os._exit(9 + (settings.output_size[0] < 0))
