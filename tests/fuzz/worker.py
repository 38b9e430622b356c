"""Process that runs cases: `python -m tests.fuzz.worker FD FOLDER BOARD`.

Creates each case from its seed, runs it and sends the result. The board is a small memory-mapped
file that names the current case, so that a crash is attributed to it.
"""

from __future__ import annotations

import importlib
import os
import resource
import shutil
import sys
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random

from tests.fuzz.answer import Answer, Board
from tests.fuzz.guard import Guard, forget_peak, memory_mib
from tests.fuzz.kind import BrokenPromiseError, Kind, outcome_of

ADDRESS_SPACE = 12 << 30
_MAKING_S = 300.0  # the first case of a kind creates the valid files that it damages


def find_kind(module: str, name: str) -> Kind:
    """Return the kind called `name` in the list `KINDS` of a module."""
    kinds: list[Kind] = importlib.import_module(module).KINDS
    return next(kind for kind in kinds if kind.name == name)


def seeded(name: str, seed: int) -> Random:
    """Return the generator of one case; the same on every machine."""
    return Random(f"{name}-{seed}")


def run_case(kind: Kind, seed: int, folder: Path, guard: Guard, board: Board) -> Answer:
    """Run one case and return its answer; never raises."""
    board.write(seed, time.monotonic() + _MAKING_S)
    case = kind.make(seeded(kind.name, seed))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    forget_peak()
    before = memory_mib("VmRSS")
    outcome = finding = ""
    board.write(seed, time.monotonic())
    guard.active = True
    try:
        outcome = outcome_of(kind, case, folder)
    except BaseException as error:  # noqa: BLE001 - any exception is a finding
        finding = _described(error)
    guard.active = False
    grown = memory_mib("VmHWM") - before
    try:
        guard.check()
    except BrokenPromiseError as error:
        finding = finding or str(error)
    if grown > kind.memory_mib and not finding:
        finding = f"memory: {grown} MiB, the bound is {kind.memory_mib}"
    return Answer(seed, "finding" if finding else outcome, finding, grown)


def _described(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if f"{os.sep}pipeline{os.sep}" in frame.filename] or frames
    where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno} {ours[-1].name}"
    return f"{type(error).__name__} at {where}: {' '.join(str(error).split())[:300]}"


def serve(connection: Connection, folder: Path, board: Board) -> None:
    """Answer batches `(module, kind, seeds)` until the parent closes the connection."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff prints warnings for each file
    guard = Guard(folder, Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]))
    while True:
        try:
            module, name, seeds = connection.recv()
        except EOFError:
            return
        kind = find_kind(module, name)
        answers = [run_case(kind, seed, folder, guard, board) for seed in seeds]
        board.write(-1, time.monotonic())
        connection.send(answers)


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])), Path(sys.argv[2]), Board(Path(sys.argv[3])))
