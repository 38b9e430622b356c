"""`cut_face` in child processes: dlib holds the interpreter's lock, so that threads do not help.

Not `multiprocessing`: its spawned children import the caller's `__main__` again, which is Ray in an
actor and torch in a job, and they outlive a caller that is killed.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from queue import SimpleQueue

import torch

from pipeline.errors import PipelineError
from pipeline.metrics import face_cutter
from pipeline.metrics.face_cutter import Cut, Order

MOST_PROCESSES = 8
_TRIES = 2
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def face_processes(device: str) -> int:
    """How many children look for faces beside a network on `device`; 0 is this process itself.

    Beside a GPU, which waits for them: a CPU each, but the one that feeds the GPU, and 8 at most.
    """
    if torch.device(device).type == "cpu":
        return 0
    return min(max(len(os.sched_getaffinity(0)) - 1, 1), MOST_PROCESSES)


class FacePool:
    """Child processes, one image each at a time, that start when they are first needed.

    They end with the pool and with this process, however it ends: at once when idle, else after
    their image. One that dies is replaced, and its image tried once more.
    """

    def __init__(self, processes: int) -> None:
        self._children = [_Child() for _ in range(processes)]
        self._free: SimpleQueue[_Child] = SimpleQueue()
        for child in self._children:
            self._free.put(child)
        self._threads = ThreadPoolExecutor(processes, "faces")
        weakref.finalize(self, _stop, self._children)

    def submit(self, order: Order) -> Future[Cut | None]:
        """What `cut_face` gives; `PipelineError` where the image's process died twice."""
        return self._threads.submit(self._ask, order)

    @property
    def pids(self) -> list[int]:
        """Process ids of the children that were started and not seen to die."""
        return [child.process.pid for child in self._children if child.process]

    def _ask(self, order: Order) -> Cut | None:
        child = self._free.get()
        try:
            return child.ask(order)
        finally:
            self._free.put(child)


class _Child:
    """A place for one child process, and this side of its socket pair."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.connection: Connection | None = None

    def ask(self, order: Order) -> Cut | None:
        ended = ""
        for _ in range(_TRIES):
            connection = self.connection or self._start()
            try:
                connection.send(order)
                cut: Cut | None = connection.recv()
            except (EOFError, OSError):  # OSError: in the middle of an answer
                ended = self._how_it_ended()
            else:
                return cut
        raise PipelineError(f"the process that looks for faces {ended}, {_TRIES} times")

    def stop(self) -> None:
        """Kill it: it holds nothing that needs an orderly end."""
        if self.process is not None:
            self.process.kill()
            self._how_it_ended()

    def _start(self) -> Connection:
        ours, theirs = multiprocessing.Pipe()
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)  # noqa: PTH109
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", face_cutter.__file__, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # the job's own output is read by machines
                pass_fds=[theirs.fileno()],
                env={**os.environ, **_ONE_THREAD, "PYTHONPATH": path},
                start_new_session=True,  # Ctrl-C is for the parent to handle
            )
        self.connection = ours
        return ours

    def _how_it_ended(self) -> str:
        assert self.process is not None
        assert self.connection is not None
        self.connection.close()
        code = self.process.wait()
        self.process = self.connection = None
        if code >= 0:
            return f"ended with exit code {code}"
        return f"died with signal {-code} ({signal.Signals(-code).name})"


def _stop(children: list[_Child]) -> None:
    for child in children:
        child.stop()
