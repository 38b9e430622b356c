"""Feed a worker process with batches of cases and collect their results."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.fuzz.answer import Answer, Board
from tests.fuzz.kind import Kind, write_case
from tests.fuzz.worker import find_kind, seeded

ROOT = Path(__file__).resolve().parents[2]
_BATCH = 64
_START_LIMIT_S = 300.0  # imports on a busy machine
_END_LIMIT_S = 30.0  # from the end of its messages to the end of the process
_SENTINELS = ("home", "tmp", "elsewhere")


@dataclass
class Tally:
    """Results of the cases of one kind."""

    outcomes: Counter[str] = field(default_factory=Counter)
    findings: list[Answer] = field(default_factory=list)
    most_mib: int = 0
    seconds: float = 0.0

    def take(self, answer: Answer) -> None:
        """Add one answer."""
        self.outcomes[answer.outcome] += 1
        self.most_mib = max(self.most_mib, answer.grown_mib)
        if answer.finding:
            self.findings.append(answer)

    def to_dict(self) -> dict[str, Any]:
        """Return the results as JSON values."""
        return {
            "cases": self.outcomes.total(),
            "outcomes": dict(sorted(self.outcomes.items())),
            "findings": len(self.findings),
            "most_mib": self.most_mib,
            "seconds": round(self.seconds, 1),
        }


class Worker:
    """Worker process with its own home, temporary folder and working directory."""

    def __init__(self) -> None:
        self.scratch = Path(tempfile.mkdtemp(prefix="fuzz-"))
        for name in _SENTINELS:
            (self.scratch / name).mkdir()
            (self.scratch / name / "untouched").write_text("as it was")
        self.folder = self.scratch / "elsewhere" / "case"
        self.board = Board(self.scratch / "board")
        self._start()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()
        shutil.rmtree(self.scratch, ignore_errors=True)

    def run(self, module: str, kind: Kind, seeds: Sequence[int]) -> Iterator[Answer]:
        """Yield an answer for each seed; a case that crashes the process gets a finding."""
        waiting = list(seeds)
        while waiting:
            batch, waiting = waiting[:_BATCH], waiting[_BATCH:]
            self.connection.send((module, kind.name, batch))
            answers = self._answers(kind)
            yield from answers
            if not answers:
                seed = self.board.read()[0]
                yield Answer(seed, "finding", self._how_it_ended(kind))
                self._restart()
                # Earlier answers of the batch died with the process and are computed again.
                waiting = [other for other in batch if other != seed] + waiting
        unexpected = self.unexpected_files()
        if unexpected:
            raise AssertionError(f"files outside the case's folder: {unexpected}")

    def _answers(self, kind: Kind) -> list[Answer]:
        """Return the answers of the batch that was sent; none if the process died or hangs."""
        while not self.connection.poll(0.2):
            if self.process.poll() is not None or self._overdue(kind):
                return []
        try:
            answers: list[Answer] = self.connection.recv()
        except (EOFError, ConnectionError):
            # The process closes its end of the pipe shortly before it ends.
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(_END_LIMIT_S)
            return []
        return answers

    def unexpected_files(self) -> list[str]:
        """Return files outside the case's folder that were created, changed or removed."""
        paths = [
            str(path.relative_to(self.scratch))
            for name in _SENTINELS
            for path in (self.scratch / name).rglob("*")
            if path != self.folder
            and self.folder not in path.parents
            and path.name != "untouched"
            # Empty folders of queries: a worker that is killed leaves them behind
            and not (path.name.startswith("restyle-query-") and not any(path.iterdir()))
        ]
        for name in _SENTINELS:
            file = self.scratch / name / "untouched"
            if not file.exists() or file.read_text() != "as it was":
                paths.append(str(file.relative_to(self.scratch)))
        return paths

    def _overdue(self, kind: Kind) -> bool:
        seed, started = self.board.read()
        limit = kind.limit_s if seed >= 0 else _START_LIMIT_S
        return time.monotonic() - started > limit

    def _start(self) -> None:
        self.connection, theirs = multiprocessing.Pipe()
        self.board.write(-1, time.monotonic())
        command = [sys.executable, "-P", "-m", "tests.fuzz.worker", str(theirs.fileno())]
        self.process = subprocess.Popen(
            [*command, str(self.folder), str(self.scratch / "board")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            cwd=self.scratch / "elsewhere",
            env={
                **os.environ,
                "HOME": str(self.scratch / "home"),
                "TMPDIR": str(self.scratch / "tmp"),
                "PYTHONPATH": str(ROOT),
                "PYTHONDONTWRITEBYTECODE": "1",
                "TORCHINDUCTOR_CACHE_DIR": str(self.scratch / "cache"),
                "OMP_NUM_THREADS": "1",
            },
        )
        theirs.close()

    def _stop(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.wait()

    def _restart(self) -> None:
        self._stop()
        self._start()

    def _how_it_ended(self, kind: Kind) -> str:
        if self.process.poll() is None:
            return f"hang: over {kind.limit_s:g} s"
        code = self.process.returncode
        return f"crash: {signal.Signals(-code).name}" if code < 0 else f"crash: exit code {code}"


def fuzz(
    plan: Sequence[tuple[str, Kind, Sequence[int]]], keep: Path | None = None
) -> dict[str, Tally]:
    """Run the planned (module, kind, seeds) one after another; return the results by kind.

    The files of a case with a finding are written below `keep`.
    """
    tallies: dict[str, Tally] = {}
    with Worker() as worker:
        for module, kind, seeds in plan:
            tally = tallies.setdefault(kind.name, Tally())
            started = time.monotonic()
            for answer in worker.run(module, kind, seeds):
                tally.take(answer)
                if answer.finding and keep:
                    keep_case(module, kind, answer, keep)
            tally.seconds += time.monotonic() - started
    return tallies


def keep_case(module: str, kind: Kind, answer: Answer, keep: Path) -> None:
    """Write a failing case, its finding, and the command that repeats it."""
    folder = keep / f"{kind.name}-{answer.seed}"
    case = find_kind(module, kind.name).make(seeded(kind.name, answer.seed))
    try:
        write_case(case, folder / "case")
    except (OSError, ValueError):  # some cases have names that no disk accepts
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "case.txt").write_text(repr(case))
    command = f"python -m tests.fuzz --only {kind.name} --seed {answer.seed} --count 1"
    (folder / "finding.txt").write_text(f"{answer.finding}\n{command}\n")
