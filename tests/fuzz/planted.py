"""Planted faults that the fuzzer must detect, so that "no finding" means something."""

from __future__ import annotations

import ctypes
import os
import time
from pathlib import Path
from random import Random

from pipeline.errors import StorageError
from tests.fuzz.kind import Case, Kind

BAD = 5  # seed of the case with the fault


def _make(draw: Random) -> Case:
    return {"bytes": draw.randbytes(8)}


def _is_bad(case: Case, name: str) -> bool:
    return case == _make(Random(f"{name}-{BAD}"))


def _crash(case: Case, _: Path) -> str:
    if _is_bad(case, "crash"):
        ctypes.string_at(0)
    return "row"


def _hang(case: Case, _: Path) -> str:
    if _is_bad(case, "hang"):
        time.sleep(60)
    return "row"


def _memory(case: Case, _: Path) -> str:
    if _is_bad(case, "memory"):
        bytearray(100 << 20)
    return "row"


def _exception(case: Case, _: Path) -> str:
    if _is_bad(case, "exception"):
        raise KeyError("unforeseen")
    return "row"


def _stray(case: Case, folder: Path) -> str:
    if _is_bad(case, "stray"):
        (folder.parent / "stray").write_text("x")
        (folder.parent / "stray").unlink()
    return "row"


def _command(case: Case, _: Path) -> str:
    if _is_bad(case, "command"):
        os.system("true")
    return "row"


def _lines(case: Case, _: Path) -> str:
    if _is_bad(case, "lines"):
        raise StorageError("")
    raise StorageError("one line")


KINDS = [
    Kind("crash", _make, _crash, share=1),
    Kind("hang", _make, _hang, share=1, limit_s=2),
    Kind("memory", _make, _memory, share=1, memory_mib=32),
    Kind("exception", _make, _exception, share=1),
    Kind("stray", _make, _stray, share=1),
    Kind("command", _make, _command, share=1),
    Kind("lines", _make, _lines, share=1),
]
SIGNS = {
    "crash": "crash: SIGSEGV",
    "hang": "hang: over 2 s",
    "memory": "memory: ",
    "exception": "KeyError at planted.py",
    "stray": "bad input caused writing to",
    "command": "bad input caused os.system",
    "lines": "not one printable line",
}
