"""`cut_face` in child processes: dlib holds the interpreter's lock, so that threads do not help."""

from __future__ import annotations

import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue

import torch

from pipeline.child_process import TRIES, Child
from pipeline.errors import PipelineError
from pipeline.machine import whole_cpus
from pipeline.metrics import face_child
from pipeline.metrics.face_child import Cut, Order

MOST_PROCESSES = 8
# An image takes milliseconds; the first one also awaits the interpreter, numpy, dlib and 100 MB of
# landmark model, on a busy machine.
_ANSWER_TIMEOUT_S = 300.0


def face_processes(device: str) -> int:
    """How many children look for faces beside a network on `device`; 0 is this process itself.

    Beside a GPU, which waits for them: a CPU each, but the one that feeds the GPU, and 8 at most.
    """
    if torch.device(device).type == "cpu":
        return 0
    return min(max(whole_cpus() - 1, 1), MOST_PROCESSES)


class FacePool:
    """Child processes, one image each at a time, that start when they are first needed.

    They end with the pool and with this process, however it ends: at once when idle, else after
    their image. One that dies is replaced, and its image tried once more; one that hangs is ended.
    """

    def __init__(self, processes: int) -> None:
        self._places = [_Place() for _ in range(processes)]
        self._free: SimpleQueue[_Place] = SimpleQueue()
        for place in self._places:
            self._free.put(place)
        self._threads = ThreadPoolExecutor(processes, "faces")
        weakref.finalize(self, _stop, self._places)

    def submit(self, order: Order) -> Future[Cut | None]:
        """What `cut_face` gives; `PipelineError` where the image's process died twice, or hung."""
        return self._threads.submit(self._ask, order)

    @property
    def pids(self) -> list[int]:
        """Process ids of the children that were started and not seen to die."""
        return [place.child.pid for place in self._places if place.child]

    def _ask(self, order: Order) -> Cut | None:
        place = self._free.get()
        try:
            return place.ask(order)
        finally:
            self._free.put(place)


class _Place:
    """A place for one child process."""

    def __init__(self) -> None:
        self.child: Child | None = None

    def ask(self, order: Order) -> Cut | None:
        ended = ""
        for _ in range(TRIES):
            child = self.child = self.child or Child([face_child.__file__], _ANSWER_TIMEOUT_S)
            try:
                child.connection.send(order)
                cut: Cut | None = child.receive(_ANSWER_TIMEOUT_S)
            except TimeoutError as error:  # which is an OSError
                self.stop()
                raise PipelineError(
                    f"the process that looks for faces took over {_ANSWER_TIMEOUT_S:g} s"
                ) from error
            except (EOFError, OSError):
                ended = child.how_it_ended()
                self.stop()
            else:
                return cut
        raise PipelineError(f"the process that looks for faces {ended}, {TRIES} times")

    def stop(self) -> None:
        if self.child is not None:
            self.child.stop()
            self.child = None


def _stop(places: list[_Place]) -> None:
    for place in places:
        place.stop()
