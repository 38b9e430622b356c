"""Decode and align images in a child process, so that no image can crash the caller.

One image is sent at a time. If the child dies, that image is the cause; and the two processes can
never both wait on a full pipe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeAlias

from pipeline.alignment.aligner import Aligner
from pipeline.alignment.face import Alignment
from pipeline.alignment.settings import AlignmentSettings
from pipeline.child_process import TRIES, Child
from pipeline.errors import PipelineError
from pipeline.images import Rejection, RejectReason

Outcome: TypeAlias = Alignment | Rejection

_START_TIMEOUT_S = 300.0  # start of Python, numpy, dlib and a 100 MB model on a busy machine
_COMMAND = ("-m", "pipeline.alignment.worker_main")


class RowAligner(Protocol):
    """Aligner that the child process runs."""

    def align(self, content: bytes) -> Alignment:
        """Align the faces of one encoded image; raises `Rejection`."""


class _ChildDiedError(Exception):
    """Raised if the child ends before it answers; the message says how it ended."""


class IsolatedAligner:
    """Runs an `Aligner` in a child process, which is restarted whenever an image kills it.

    The child ends with its parent, however the parent ends: at once if idle, else after its image,
    at the latest `settings.row_timeout_s` plus 5 s after that image's start. Use as a context
    manager, or call `close`.
    """

    def __init__(
        self,
        settings: AlignmentSettings | None = None,
        *,
        factory: Callable[[AlignmentSettings], RowAligner] = Aligner,  # must be importable by name
    ) -> None:
        self.settings = settings or AlignmentSettings()
        self._factory = factory
        self._child: Child | None = None

    def process(self, contents: Iterable[bytes]) -> Iterator[Outcome]:
        """Yield one outcome for each encoded image, in order: its faces, or a `Rejection`.

        Reasons are those of `Aligner.align`, `timed_out` after `settings.row_timeout_s`, and
        `crashed` if the image exceeds the memory limit, raises an unexpected error, or kills two
        children. One death is not enough: the kernel may have killed the child for lack of memory.
        Raises `PipelineError` if the child cannot start.
        """
        for content in contents:
            yield self._outcome(content)

    @property
    def pid(self) -> int | None:
        """Process id of the child; None if no child is running."""
        return self._child.pid if self._child else None

    def close(self) -> None:
        """Stop the child; the next `process` starts another."""
        if self._child is not None:
            self._child.stop()
            self._child = None

    def __enter__(self) -> IsolatedAligner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _outcome(self, content: bytes) -> Outcome:
        detail = ""
        for _ in range(TRIES):
            try:
                return self._send(content)
            except TimeoutError:
                return Rejection(
                    RejectReason.TIMED_OUT,
                    f"took over {self.settings.row_timeout_s:g} s: --image-timeout gives it more, "
                    "a lower --search-pixels needs less",
                )
            except _ChildDiedError as death:
                detail = str(death)
        return Rejection(RejectReason.CRASHED, f"its process {detail}, {TRIES} times")

    def _send(self, content: bytes) -> Outcome:
        try:
            if self._child is None:
                self._child = Child(_COMMAND, self.settings.row_timeout_s)
                self._configure(self._child)
            return self._exchange(self._child, content)
        except BaseException:
            # Also on Ctrl-C: a late answer must not be read as that of the next image.
            self.close()
            raise

    def _configure(self, child: Child) -> None:
        try:
            child.connection.send((self.settings, self._factory))
            problem = child.receive(_START_TIMEOUT_S)
        except TimeoutError as error:
            raise PipelineError(
                f"the alignment process was not ready within {_START_TIMEOUT_S:g} s"
            ) from error
        except (EOFError, OSError) as error:
            raise PipelineError(
                f"the alignment process does not start: it {child.how_it_ended()}"
            ) from error
        if problem is not None:
            raise PipelineError(f"the alignment process does not start: {problem}")

    def _exchange(self, child: Child, content: bytes) -> Outcome:
        """Send an image and return the outcome; raises `TimeoutError` or `_ChildDiedError`."""
        try:
            child.connection.send_bytes(content)
            outcome: Outcome = child.receive(self.settings.row_timeout_s)
        except TimeoutError:  # a subclass of OSError
            raise
        except (EOFError, OSError) as error:
            raise _ChildDiedError(child.how_it_ended()) from error
        return outcome
