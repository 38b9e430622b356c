"""Crop faces in child processes: dlib holds the interpreter's lock, so threads do not help."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.child_process import TRIES, Child
from pipeline.dlib_models import dlib_model
from pipeline.errors import PipelineError
from pipeline.machine import whole_cpus
from pipeline.metrics import face_child
from pipeline.metrics.face_child import Crop, Pixels, Request, crop_face
from pipeline.models.pixels import to_levels
from pipeline.models.transfer import download

MAX_PROCESSES = 8
# An image takes milliseconds; the first also waits for Python, numpy, dlib and a 100 MB model to
# load on a busy machine.
_ANSWER_TIMEOUT_S = 300.0


def face_processes(device: str) -> int:
    """Return the number of children that find faces for a network on `device`; 0: this process.

    For a GPU, which waits for them: one per CPU except the one that feeds the GPU, at most 8.
    """
    if torch.device(device).type == "cpu":
        return 0
    return min(max(whole_cpus() - 1, 1), MAX_PROCESSES)


class FacePool:
    """Pool of child processes, each with one image at a time, started when first needed.

    Children end with the pool and with this process, however it ends: at once if idle, else after
    their image. A child that dies is replaced and its image retried once; one that hangs is
    stopped.
    """

    def __init__(self, processes: int) -> None:
        self._slots = [_WorkerSlot() for _ in range(processes)]
        self._free: SimpleQueue[_WorkerSlot] = SimpleQueue()
        for slot in self._slots:
            self._free.put(slot)
        self._threads = ThreadPoolExecutor(processes, "faces")
        weakref.finalize(self, _stop, self._slots)

    def submit(self, request: Request) -> Future[Crop | None]:
        """Start `crop_face`; the result is a `PipelineError` if the child dies twice or hangs."""
        return self._threads.submit(self._run, request)

    @property
    def pids(self) -> list[int]:
        """Process ids of the running children."""
        return [slot.child.pid for slot in self._slots if slot.child]

    def _run(self, request: Request) -> Crop | None:
        slot = self._free.get()
        try:
            return slot.run(request)
        finally:
            self._free.put(slot)


class _WorkerSlot:
    """Slot of one child process, which is started and replaced as needed."""

    def __init__(self) -> None:
        self.child: Child | None = None

    def run(self, request: Request) -> Crop | None:
        """Return the crop of `request`; raises `PipelineError`."""
        ended = ""
        for _ in range(TRIES):
            child = self.child = self.child or Child([face_child.__file__], _ANSWER_TIMEOUT_S)
            try:
                child.connection.send(request)
                crop: Crop | None = child.receive(_ANSWER_TIMEOUT_S)
            except TimeoutError as error:  # a subclass of OSError
                self.stop()
                raise PipelineError(
                    f"the process that looks for faces took over {_ANSWER_TIMEOUT_S:g} s"
                ) from error
            except (EOFError, OSError):
                ended = child.how_it_ended()
                self.stop()
            else:
                return crop
        raise PipelineError(f"the process that looks for faces {ended}, {TRIES} times")

    def stop(self) -> None:
        """Stop the child, if any."""
        if self.child is not None:
            self.child.stop()
            self.child = None


def _stop(slots: list[_WorkerSlot]) -> None:
    for slot in slots:
        slot.stop()


# Longer side of the copy on which faces are detected: 4 ms instead of 8 at 256 px, with the same
# faces found. HOG's smallest face is 80 px; the face of an FFHQ crop is 0.5 to 0.7 of its side.
DETECTION_SIDE = 192


def landmark_file(points: int) -> str:
    """Return the path of dlib's model of 5 landmarks (eye corners, nose) or 68."""
    return str(dlib_model(f"shape_predictor_{points}_face_landmarks.dat"))


def begin_views(images: Tensor) -> Callable[[], list[tuple[Pixels, Pixels, float]]]:
    """Start to make the inputs of `find_face` for images [n, 3, h, w] in [-1, 1].

    These are pixels, a smaller copy, and its scale, all computed at once on the images' device. The
    returned function waits for the copies from a GPU.
    """
    height, width = images.shape[-2:]
    factor = min(1.0, DETECTION_SIDE / max(height, width))
    size = [round(height * factor), round(width * factor)]
    small = F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
    levels = {
        name: to_levels(batch).movedim(-3, -1).contiguous()
        for name, batch in (("pixels", images), ("small", small))
    }
    copied = download(levels)

    def pairs() -> list[tuple[Pixels, Pixels, float]]:
        arrays = copied()
        both = zip(arrays["pixels"], arrays["small"], strict=True)
        return [(pixels, reduced, factor) for pixels, reduced in both]

    return pairs


class FaceCropper:
    """Crops the largest face of each image, in this process or in `processes` children.

    `chip` is the side and the padding of a crop; without it the result is the landmarks.
    """

    def __init__(
        self, points: int, chip: tuple[int, float] | None = None, processes: int = 0
    ) -> None:
        self.landmarks, self.chip = landmark_file(points), chip
        self.pool = FacePool(processes) if processes else None
        # Waits for copies from a GPU, so that the caller can go on launching its work.
        self._waiting = ThreadPoolExecutor(1, "views") if processes else None

    def begin(self, images: Tensor) -> Callable[[], list[Crop | None]]:
        """Start to crop `images` [n, 3, h, w]; the returned function waits for the n crops.

        Without children the crops are made before it returns.
        """
        copied = begin_views(images)
        if self.pool is None or self._waiting is None:
            crops = [crop_face((self.landmarks, self.chip, *view)) for view in copied()]
            return lambda: crops
        submitted = self._waiting.submit(self._submit, self.pool, copied)
        return lambda: [future.result() for future in submitted.result()]

    def _submit(
        self, pool: FacePool, copied: Callable[[], list[tuple[Pixels, Pixels, float]]]
    ) -> list[Future[Crop | None]]:
        return [pool.submit((self.landmarks, self.chip, *view)) for view in copied()]
