"""Decode and align in a child process, so that no image can take the caller down with it.

Why a row at a time: the row that is out when a child dies is the row that killed it, and neither
end can wait on a full pipe while the other does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Protocol, TypeAlias

from pipeline.alignment.aligner import Aligner
from pipeline.alignment.face import Alignment
from pipeline.alignment.settings import AlignmentSettings
from pipeline.child_process import TRIES, Child
from pipeline.errors import PipelineError
from pipeline.images import Rejection, RejectReason

Outcome: TypeAlias = Alignment | Rejection

_START_TIMEOUT_S = 300.0  # interpreter, numpy, dlib and 100 MB of landmark model on a busy machine
_COMMAND = ("-m", "pipeline.alignment.worker_main")


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
        self._child: Child | None = None

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
        return self._child.pid if self._child else None

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
        for _ in range(TRIES):
            try:
                return self._ask(content)
            except TimeoutError:
                return Rejection(
                    RejectReason.TIMED_OUT,
                    f"took over {self.settings.row_timeout_s:g} s: --image-timeout gives it more, "
                    "a lower --search-pixels needs less",
                )
            except _ChildDiedError as death:
                detail = str(death)
        return Rejection(RejectReason.CRASHED, f"its process {detail}, {TRIES} times")

    def _ask(self, content: bytes) -> Outcome:
        try:
            if self._child is None:
                self._child = Child(_COMMAND, self.settings.row_timeout_s)
                self._introduce(self._child)
            return self._answer(self._child, content)
        except BaseException:
            # Also on Ctrl-C: an answer still on its way must not be taken for the next row's.
            self.close()
            raise

    def _introduce(self, child: Child) -> None:
        try:
            child.connection.send((self.settings, self._factory))
            complaint = child.receive(_START_TIMEOUT_S)
        except TimeoutError as error:
            raise PipelineError(
                f"the alignment process was not ready within {_START_TIMEOUT_S:g} s"
            ) from error
        except (EOFError, OSError) as error:
            raise PipelineError(
                f"the alignment process does not start: it {child.how_it_ended()}"
            ) from error
        if complaint is not None:
            raise PipelineError(f"the alignment process does not start: {complaint}")

    def _answer(self, child: Child, content: bytes) -> Outcome:
        """Raises `TimeoutError`, or `_ChildDiedError` with how."""
        try:
            child.connection.send_bytes(content)
            outcome: Outcome = child.receive(self.settings.row_timeout_s)
        except TimeoutError:  # which is an OSError
            raise
        except (EOFError, OSError) as error:
            raise _ChildDiedError(child.how_it_ended()) from error
        return outcome
