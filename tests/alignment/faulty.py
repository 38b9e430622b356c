"""Aligners that crash, hang or slow down their process on command, for the tests of the worker."""

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
    """Treats contents that begin with `!` as commands, and all others as prealigned images."""

    def __init__(self, settings: AlignmentSettings) -> None:
        self.settings = settings
        self.aligner = Aligner(replace(settings, prealigned=True))

    def align(self, content: bytes) -> Alignment:
        """Run the command in `content`, or align it as an image."""
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
    """Hang without releasing the interpreter's lock."""
    ctypes.PyDLL(None).sleep(int(seconds))


def _write_pid(file: str) -> None:
    """Write the process id to a file, atomically."""
    half = Path(f"{file}.half")
    half.write_text(str(os.getpid()))
    half.rename(file)


def _write_pid_and_hold(file: str) -> None:
    _write_pid(file)
    _hold("600")


def _ring(number: str) -> None:
    """Send the parent a signal while it waits for this image."""
    os.kill(os.getppid(), int(number))
    time.sleep(600)


_CALLS: dict[bytes, Callable[[str], None]] = {
    b"!hold": _hold,
    b"!write_pid": _write_pid,
    b"!write_pid_and_hold": _write_pid_and_hold,
    b"!ring": _ring,
}


def _answer(announced: int, end: int = signal.SIGKILL) -> None:
    """Announce a message, send ten bytes of it and end; without a length send nothing and hang."""
    os.write(int(sys.argv[1]), struct.pack("!i", announced) + b"x" * min(announced, 10))
    if announced:
        os.kill(os.getpid(), end)
    time.sleep(600)


def curt(settings: AlignmentSettings) -> FaultyAligner:
    """Die while sending the message that the process is ready."""
    _answer(1000)
    return FaultyAligner(settings)


def stuck(settings: AlignmentSettings) -> FaultyAligner:
    """Hang while sending the message that the process is ready."""
    _answer(1000, signal.SIGSTOP)
    return FaultyAligner(settings)


class UnbuildableAligner:
    """Fails before the first image."""

    def __init__(self, settings: AlignmentSettings) -> None:
        raise FileNotFoundError(f"no model for {settings.faces}")

    def align(self, content: bytes) -> Alignment:
        """Fail the test: no image is ever aligned."""
        raise AssertionError(content)


def abrupt(settings: AlignmentSettings) -> UnbuildableAligner:
    """End the process while it starts."""
    os._exit(9 + (settings.output_size[0] < 0))
