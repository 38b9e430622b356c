"""Runs of the job, each in a process of its own, and how long one may take."""

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
# A run that has not ended by then hangs.
LIGHT_BOUND_S = 180.0
RAY_BOUND_S = 420.0


class HangError(Exception):
    """A run did not end within its bound."""


class UnavailableError(Exception):
    """This machine cannot play a fault; the text says why."""


@dataclass(frozen=True)
class Ended:
    """A run that ended: its exit code (negative: the signal) and what it said."""

    code: int
    said: str

    @property
    def errors(self) -> list[str]:
        """The errors of its account, or all that it said if it left none."""
        try:
            line: dict[str, Any] = json.loads(self.said.splitlines()[-1])
        except (ValueError, IndexError):
            return [self.said] if self.said else []
        return list(line["errors"])


class Run(Protocol):
    """A run on its way."""

    pid: int

    def wait(self) -> Ended:
        """Its end; `HangError` if that does not come within the bound."""

    def signal(self, number: int) -> None:
        """Signal the driver."""

    def running(self) -> bool:
        """Whether it has not ended."""


def prepare_forks() -> Any:
    """The context that forks light runs; everything is imported once, before the first."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.faults.light", "pipeline.engine.resolve"])
    return context


class LightRun:
    """A run without Ray (`tests.faults.light`)."""

    def __init__(
        self,
        context: Any,
        told: Path,
        settings: Mapping[str, Any],
        environment: Mapping[str, str],
        wreck: Wreck | None = None,
    ) -> None:
        self.told = told
        self.process = context.Process(
            target=main, args=(dict(settings), dict(environment), wreck, str(told))
        )
        self.process.start()
        self.pid: int = self.process.pid

    def running(self) -> bool:
        """Whether it has not ended."""
        return bool(self.process.is_alive())

    def signal(self, number: int) -> None:
        """Signal the process."""
        if self.running():
            os.kill(self.pid, number)

    def wait(self) -> Ended:
        """Its end; `HangError` if that does not come within the bound."""
        self.process.join(LIGHT_BOUND_S)
        if self.running():
            self.process.kill()
            self.process.join()
            raise HangError(f"a run without Ray did not end within {LIGHT_BOUND_S:.0f} s")
        told = [self.told, self.told.with_suffix(".err")]
        said = next((path.read_text(errors="replace") for path in told if path.exists()), "")
        return Ended(self.process.exitcode, said)


class ProcessRun:
    """A run of a command: the job on Ray, or a light one that needs an environment of its own."""

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
        """Whether it has not ended."""
        return self.process.poll() is None

    def signal(self, number: int) -> None:
        """Signal the driver, not what it started."""
        if self.running():
            send([self.pid], number)

    def wait(self) -> Ended:
        """Its end; `HangError` if that does not come within the bound."""
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
    """SIGSTOP the driver, and SIGCONT it after `seconds`."""
    run.signal(signal.SIGSTOP)
    time.sleep(seconds)
    run.signal(signal.SIGCONT)
