"""An aligner that does to its process what a content names: for the tests of isolation."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

from pipeline.alignment import AlignedFace, Aligner, AlignmentSettings


class FaultyAligner:
    """Contents that begin with `!` are orders; all others are images, taken as prealigned."""

    def __init__(self, settings: AlignmentSettings) -> None:
        self.settings = settings
        self.aligner = Aligner(replace(settings, prealigned=True))

    def align(self, content: bytes) -> list[AlignedFace]:
        """Obey, or align."""
        order, _, argument = content.partition(b" ")
        if order == b"!segfault":
            ctypes.string_at(0)
        elif order == b"!exit":
            os._exit(int(argument))
        elif order == b"!sleep":
            time.sleep(float(argument))
        elif order == b"!hold":  # a hang that keeps the interpreter's lock
            ctypes.PyDLL(None).sleep(int(argument))
        elif order == b"!memory":
            bytearray(int(argument))
        elif order == b"!bug":
            raise KeyError(argument.decode())
        elif order == b"!die_once":
            marker = Path(argument.decode())
            if not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return []
        return self.aligner.align(content)


class UnbuildableAligner:
    """Fails before the first row."""

    def __init__(self, settings: AlignmentSettings) -> None:
        raise FileNotFoundError(f"no model for {settings.faces}")

    def align(self, content: bytes) -> list[AlignedFace]:
        """Never reached."""
        raise AssertionError(content)


def abrupt(settings: AlignmentSettings) -> UnbuildableAligner:
    """A factory whose process ends while it starts."""
    os._exit(9 + (settings.output_size[0] < 0))
