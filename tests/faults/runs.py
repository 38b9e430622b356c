"""Runs of the job, each in its own process, with a limit on their duration."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tests.faults.light import Wreck, main
from tests.faults.processes import kill_tree, send

ROOT = Path(__file__).resolve().parents[2]
# A run that takes longer hangs.
LIGHT_BOUND_S = 180.0
RAY_BOUND_S = 420.0


class HangError(Exception):
    """Run that did not end within its limit."""


class UnavailableError(Exception):
    """Fault that this machine cannot produce; the text says why."""


@dataclass(frozen=True)
class Ended:
    """Run that has ended: its exit code (negative: the signal) and its output."""

    code: int
    said: str

    @property
    def errors(self) -> list[str]:
        """Return the errors in its result, or all of its output if it wrote no result."""
        try:
            line: dict[str, Any] = json.loads(self.said.splitlines()[-1])
        except (ValueError, IndexError):
            return [self.said] if self.said else []
        return list(line["errors"])


class Run(Protocol):
    """Run in progress."""

    pid: int

    def wait(self) -> Ended:
        """Return how the run ended; raise `HangError` after the limit."""

    def signal(self, number: int) -> None:
        """Signal the driver."""

    def running(self) -> bool:
        """Return whether the run is in progress."""


def prepare_forks() -> Any:
    """Return the context that forks light runs, after importing everything once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.faults.light", "pipeline.engine.resolve"])
    return context


class LightRun:
    """Run without Ray (`tests.faults.light`)."""

    def __init__(
        self,
        context: Any,
        report: Path,
        settings: Mapping[str, Any],
        environment: Mapping[str, str],
        wreck: Wreck | None = None,
    ) -> None:
        self.report = report
        self.process = context.Process(
            target=main, args=(dict(settings), dict(environment), wreck, str(report))
        )
        self.process.start()
        self.pid: int = self.process.pid

    def running(self) -> bool:
        """Return whether the run is in progress."""
        return bool(self.process.is_alive())

    def signal(self, number: int) -> None:
        """Signal the process."""
        if self.running():
            os.kill(self.pid, number)

    def wait(self) -> Ended:
        """Return how the run ended; raise `HangError` after the limit."""
        self.process.join(LIGHT_BOUND_S)
        if self.running():
            self.process.kill()
            self.process.join()
            raise HangError(f"a run without Ray did not end within {LIGHT_BOUND_S:.0f} s")
        reports = [self.report, self.report.with_suffix(".err")]
        said = next((path.read_text(errors="replace") for path in reports if path.exists()), "")
        return Ended(self.process.exitcode, said)


class ProcessRun:
    """Run of a command: the job on Ray, or a light run with an environment of its own."""

    def __init__(
        self, folder: Path, command: list[str], environment: Mapping[str, str], bound: float
    ) -> None:
        self.bound = bound
        self.out, self.err = folder.with_suffix(".out"), folder.with_suffix(".err")
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, *command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
                start_new_session=True,
            )
        self.pid = self.process.pid

    def running(self) -> bool:
        """Return whether the run is in progress."""
        return self.process.poll() is None

    def signal(self, number: int) -> None:
        """Signal the driver, but not its child processes."""
        if self.running():
            send([self.pid], number)

    def wait(self) -> Ended:
        """Return how the run ended; raise `HangError` after the limit."""
        try:
            code = self.process.wait(self.bound)
        except subprocess.TimeoutExpired:
            kill_tree(self.pid)
            self.process.wait()
            said = self.err.read_text(errors="replace")[-2000:]
            raise HangError(f"a run did not end within {self.bound:.0f} s: {said}") from None
        out = self.out.read_text(errors="replace")
        return Ended(code, out or self.err.read_text(errors="replace")[-2000:])


def stop_for(run: Run, seconds: float) -> None:
    """Send SIGSTOP to the driver, and SIGCONT after `seconds`."""
    run.signal(signal.SIGSTOP)
    time.sleep(seconds)
    run.signal(signal.SIGCONT)
