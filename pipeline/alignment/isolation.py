"""Decode and align in a child process, so that no image can take the caller down with it.

Why not `multiprocessing`: its spawned children import the caller's `__main__` again, and daemonic
workers may have none. Why a row at a time: the row that is out when a child dies is the row that
killed it, and neither end can wait on a full pipe while the other does.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Protocol, TypeAlias

from pipeline.alignment.aligner import Aligner
from pipeline.alignment.face import Alignment
from pipeline.alignment.settings import AlignmentSettings
from pipeline.errors import PipelineError
from pipeline.images import Rejection, RejectReason

Outcome: TypeAlias = Alignment | Rejection

_START_TIMEOUT_S = 300.0  # interpreter, numpy, dlib and 100 MB of landmark model on a busy machine
_END_TIMEOUT_S = 5.0  # from the end of its messages to that of the process
_TRIES = 2
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class RowAligner(Protocol):
    """What the child runs."""

    def align(self, content: bytes) -> Alignment:
        """The faces of one encoded image; raises `Rejection`."""


class _ChildDiedError(Exception):
    """The child ended before it answered; the text says how."""


class IsolatedAligner:
    """An `Aligner` behind a process boundary, restarted whenever a row brings it down.

    The child ends with its parent: at once when idle, after its row when busy, and
    `settings.row_timeout_s` (plus 5 s) after that row's start at the latest, however the parent
    ended. Use as a context manager, or call `close`.
    """

    def __init__(
        self,
        settings: AlignmentSettings | None = None,
        *,
        factory: Callable[[AlignmentSettings], RowAligner] = Aligner,  # importable by its name
    ) -> None:
        self.settings = settings or AlignmentSettings()
        self._factory = factory
        self._child: _Child | None = None

    def process(self, contents: Iterable[bytes]) -> Iterator[Outcome]:
        """One outcome for each encoded image, in order: its faces, or why there are none.

        Beyond the reasons of `Aligner.align`: `crashed`, where the image killed two children (one
        death may be another's doing: the kernel's, short of memory, or an earlier image's), used
        up its memory or raised an unforeseen error; `timed_out` after `settings.row_timeout_s`.
        Raises `PipelineError` if the child cannot be started at all.
        """
        for content in contents:
            yield self._outcome(content)

    @property
    def pid(self) -> int | None:
        """The child's process id, None while there is no child."""
        return self._child.process.pid if self._child else None

    def close(self) -> None:
        """End the child; the next `process` starts another."""
        if self._child is not None:
            self._child.stop()
            self._child = None

    def __enter__(self) -> IsolatedAligner:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _outcome(self, content: bytes) -> Outcome:
        detail = ""
        for _ in range(_TRIES):
            try:
                return self._ask(content)
            except TimeoutError:
                return Rejection(
                    RejectReason.TIMED_OUT, f"took over {self.settings.row_timeout_s:g} s"
                )
            except _ChildDiedError as death:
                detail = str(death)
        return Rejection(RejectReason.CRASHED, f"its process {detail}, {_TRIES} times")

    def _ask(self, content: bytes) -> Outcome:
        if self._child is None:
            self._child = _Child(self.settings, self._factory)
        try:
            return self._child.ask(content, self.settings.row_timeout_s)
        except BaseException:
            # Also on Ctrl-C: an answer still on its way must not be taken for the next row's.
            self.close()
            raise


class _Child:
    """One running child and this side of the socket pair."""

    def __init__(
        self, settings: AlignmentSettings, factory: Callable[[AlignmentSettings], RowAligner]
    ) -> None:
        self.connection, theirs = multiprocessing.Pipe()
        command = [sys.executable, "-P", "-m", "pipeline.alignment.child", str(theirs.fileno())]
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)  # noqa: PTH109
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # the job's own output is read by machines
            pass_fds=[theirs.fileno()],
            env={**os.environ, **_ONE_THREAD, "PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C is for the parent to handle
        )
        theirs.close()
        try:
            self._introduce(settings, factory)
        except BaseException:
            self.stop()
            raise

    def ask(self, content: bytes, timeout_s: float) -> Outcome:
        """Raises `TimeoutError`, or `_ChildDiedError` with how."""
        try:
            self.connection.send_bytes(content)
            answered = self.connection.poll(timeout_s)
            outcome: Outcome | None = self.connection.recv() if answered else None
        except (EOFError, OSError) as error:  # a plain OSError where it died amid its answer
            raise _ChildDiedError(self._how_it_ended()) from error
        if outcome is None:  # out here: a TimeoutError is an OSError
            raise TimeoutError
        return outcome

    def stop(self) -> None:
        """Kill it: it holds nothing that needs an orderly end."""
        self.connection.close()
        self.process.kill()
        self.process.wait()

    def _introduce(
        self, settings: AlignmentSettings, factory: Callable[[AlignmentSettings], RowAligner]
    ) -> None:
        try:
            self.connection.send((settings, factory))
            if not self.connection.poll(_START_TIMEOUT_S):
                raise PipelineError(
                    f"the alignment process was not ready within {_START_TIMEOUT_S:g} s"
                )
            complaint = self.connection.recv()
        except (EOFError, OSError) as error:
            raise PipelineError(
                f"the alignment process does not start: it {self._how_it_ended()}"
            ) from error
        if complaint is not None:
            raise PipelineError(f"the alignment process does not start: {complaint}")

    def _how_it_ended(self) -> str:
        try:
            code = self.process.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return "broke off its answer and lived on"
        if code >= 0:
            return f"ended with exit code {code}"
        return f"died with signal {-code} ({signal.Signals(-code).name})"
