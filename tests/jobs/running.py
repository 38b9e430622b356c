"""Runs `jobs/invert_dataset.py`, or another job: as a user does, or in this process."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

JOBS = Path(__file__).resolve().parents[2] / "jobs"
PATIENCE_S = 600.0
_MARK = "INVERT_DATASET_TEST"


@dataclass(frozen=True)
class Ended:
    """A job that ended."""

    code: int
    out: str
    err: str

    @property
    def line(self) -> dict[str, Any]:
        """Return the last line of stdout."""
        result: dict[str, Any] = json.loads(self.out.splitlines()[-1])
        return result

    @property
    def refused(self) -> bool:
        """Return whether it ended as a wrong request: code 2, also on the only line of stdout."""
        return self.code == self.line["exit_code"] == 2 and self.out.count("\n") == 1


class Job:
    """A job that runs in `folder` with its output beside it, and a home of its own."""

    def __init__(
        self,
        folder: Path,
        *arguments: object,
        job: str = "invert_dataset",
        terminal: bool = False,  # whether stderr is one, of 100 columns
        **environment: str,
    ) -> None:
        self.folder, self.mark = folder, f"{_MARK}_{os.getpid()}_{time.monotonic_ns()}"
        self.home = folder / "home"
        self.home.mkdir(exist_ok=True)
        self.out, self.err = folder / "stdout", folder / "stderr"
        own = {"HOME": str(self.home), "TERM": "xterm", self.mark: "1"}
        self.copying: threading.Thread | None = None
        with self.out.open("wb") as out, self._stderr(terminal) as err:
            self.process = subprocess.Popen(
                [sys.executable, str(JOBS / f"{job}.py"), *map(str, arguments)],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env={**os.environ, **environment, **own},
                start_new_session=True,  # so that its group can be signalled, as a terminal does
            )

    def _stderr(self, terminal: bool) -> BinaryIO:
        """Open the file for its stderr, or a terminal that is copied to that file."""
        if not terminal:
            return self.err.open("wb")
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))

        def copy() -> None:
            with self.err.open("wb", buffering=0) as sink, suppress(OSError):  # EIO: all closed it
                while content := os.read(ours, 65536):
                    sink.write(content)
            os.close(ours)

        self.copying = threading.Thread(target=copy, daemon=True)
        self.copying.start()
        return os.fdopen(theirs, "wb", buffering=0)

    def ended(self) -> Ended:
        """Wait for the end."""
        code = self.process.wait(PATIENCE_S)
        if self.copying:
            self.copying.join(10)  # Ray's own processes may hold the terminal for longer
        return Ended(code, self.out.read_text(), self.err.read_bytes().decode())

    def wait_for_files(self, folder: Path, count: int) -> None:
        """Wait until `folder` holds `count` Parquet files; the job must run until then."""
        deadline = time.monotonic() + PATIENCE_S
        while len(list(folder.glob("*.parquet"))) < count:
            assert self.process.poll() is None, self.err.read_text()
            assert time.monotonic() < deadline, self.err.read_text()
            time.sleep(0.02)

    def interrupt(self) -> Ended:
        """Ctrl-C in a terminal: every process of the group gets the signal."""
        os.killpg(self.process.pid, signal.SIGINT)
        return self.ended()

    def terminate(self) -> Ended:
        """Send SIGTERM, as a cluster does before it removes the machine."""
        self.process.terminate()
        return self.ended()

    def kill(self) -> None:
        """Kill the driver; its child processes may live for a while."""
        self.process.kill()
        self.process.wait()

    def left_running(self) -> list[str]:
        """Command lines of processes that this job started and that still run."""
        result = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if f"{self.mark}=".encode() in (process / "environ").read_bytes():
                    result.append((process / "cmdline").read_text().replace("\0", " "))
            except OSError:  # it ended meanwhile, or is not ours
                continue
        return result


def run_job(
    folder: Path, *arguments: object, job: str = "invert_dataset", **environment: str
) -> Ended:
    """Run a job to its end."""
    return Job(folder, *arguments, job=job, **environment).ended()


def run_here(main: Callable[[list[str]], int], *arguments: object) -> Ended:
    """Run `main` of a job in this process: a second less, where the process promises nothing."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = main([*map(str, arguments)])
        except SystemExit as ended:
            code = int(str(ended.code))
    return Ended(code, out.getvalue(), err.getvalue())


def file_bytes(table: Path, *folders: str) -> dict[str, bytes]:
    """Content of every file of a table, hidden ones included, by its path."""
    return {
        str(path.relative_to(table)): path.read_bytes()
        for folder in folders or (".",)
        for path in sorted((table / folder).rglob("*"))
        if path.is_file()
    }
