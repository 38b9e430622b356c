"""Turn faces into rows of the latents table: codes, metrics, and images of them."""

from __future__ import annotations

import io
import itertools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipeline.choices import BestStepBy, Device, IdentitySteps
from pipeline.engine.stages.align import reject_row
from pipeline.images import Rejection, RejectReason
from pipeline.inversion import (
    Arithmetic,
    FastModel,
    Inversion,
    arithmetic,
    keep_freed_memory,
    ready_device,
)
from pipeline.inversion.methods import OPTIMISATIONS, Method, Models, convergence, find_codes
from pipeline.inversion.render import render_each
from pipeline.metrics import Measures, MetricEvaluator
from pipeline.models import RestyleModel, load_model
from pipeline.models.files import ModelHints
from pipeline.models.pixels import from_levels, to_levels
from pipeline.models.transfer import Arrays, download, upload
from pipeline.table import image_id
from pipeline.table.schema import IDENTITY

BATCH = {"cpu": 16, "cuda": 32}
# Batches of faces that share one adaptive batch: bounds the memory for images of all their steps.
BATCHES_PER_WINDOW = 8
JPEG_QUALITY = 95


@dataclass(frozen=True)
class InvertSettings:
    """Settings of an inverter actor."""

    model: str
    method: Method = field(default_factory=Method)
    first: str | None = None  # model of the first steps in encoder bootstrapping
    initial_codes: Literal["none", "all", "chosen"] = "none"  # faces that have one
    identity: str = "dlib"
    identity_steps: IdentitySteps = "all"
    best_step_by: BestStepBy = "lpips"
    device: Device = "auto"
    precision: Arithmetic = "float32"
    # Largest number of a code that the table's dtype holds.
    largest_code: float = float(np.finfo(np.float16).max)
    batch_size: int | None = None
    keep_steps: bool = False
    keep_crops: bool = False
    keep_reconstructions: bool = False
    keep_identity: bool = False
    # What the model's file does not say.
    hints: ModelHints = field(default_factory=lambda: ModelHints())


def split_evenly(count: int, largest: int) -> list[slice]:
    """Split `count` rows into the fewest batches of at most `largest`, of nearly equal length."""
    batches = -(-count // largest)
    edges = [round(i * count / batches) for i in range(batches + 1)] if batches else [0]
    return [slice(a, b) for a, b in itertools.pairwise(edges)]


def to_tensor(
    pixels: Sequence[bytes | memoryview], size: tuple[int, int], device: str = "cpu"
) -> Tensor:
    """Convert uint8 crops of (height, width) `size` to float32 [n, 3, h, w] in [-1, 1].

    A GPU gets them as bytes, a quarter of the floats.
    """
    levels = np.stack([np.frombuffer(crop, np.uint8).reshape(*size, 3) for crop in pixels])
    return from_levels(upload(levels, torch.device(device)).movedim(-1, -3))


def jpeg_of(pixels: NDArray[np.uint8]) -> bytes:
    """Encode an image uint8 [h, w, 3] as JPEG bytes."""
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "JPEG", quality=JPEG_QUALITY)
    return sink.getvalue()


def evaluator_of(settings: InvertSettings, device: str) -> MetricEvaluator:
    """Return the metrics that `settings` ask for, with LPIPS in the arithmetic of the inversion."""
    return MetricEvaluator(
        device,
        settings.identity,
        settings.best_step_by,
        settings.identity_steps,
        torch.bfloat16 if settings.precision == "bfloat16" else torch.float32,
    )


@dataclass
class InversionResult:
    """Result of a part's faces: rows for the table, and rejects."""

    latents: list[dict[str, Any]] = field(default_factory=list)  # rows of the latents table
    rejects: list[dict[str, Any]] = field(default_factory=list)  # rows of `REJECTS`
    seconds: float = 0.0  # of the inversion method alone


# Keys of a `FACES` row that are not columns; `fields` is split into columns by the stage.
_NOT_IN_ROWS = ("pixels", "target", "fields")
NOT_STORABLE = Rejection(RejectReason.NOT_FINITE, "the code or image is not finite, or too large")


class _Batch(NamedTuple):
    """Batch of faces whose results a GPU still computes."""

    names: Sequence[str]
    faces: Sequence[dict[str, Any]]
    inversion: Inversion
    measures: Callable[[], Measures]
    results: Callable[[], Arrays]  # the rest of the rows
    seconds: Callable[[], float]


class Inverter:
    """Loads the models and the metric networks once; turns faces into latents rows.

    Two threads may do so at once: while one waits for its last batch a GPU computes the other's.
    """

    def __init__(self, settings: InvertSettings) -> None:
        self.settings = settings
        self.device = ready_device(settings.device, settings.precision)
        if self.device == "cpu":
            keep_freed_memory()
        else:
            arithmetic(settings.precision, self.device)  # raises if this GPU does not have it
        self.model: RestyleModel = self._load(settings.model, settings.hints)
        self.meter = evaluator_of(settings, self.device)
        first = self._load(settings.first, {}) if settings.first else None
        self.models = Models(self.model, first, perceptual=self.meter.lpips)
        self.batch_size = settings.batch_size or BATCH[self.device]
        self._beginning = threading.Lock()

    def _load(self, model: str, hints: ModelHints) -> RestyleModel:
        """Return a model on the device, or its twin: in bfloat16, or in float32 on a CPU."""
        loaded = load_model(model, device=self.device, **hints).requires_grad_(False)
        if self.settings.precision == "bfloat16":
            return FastModel(loaded)
        has_gradients = self.settings.method.name in OPTIMISATIONS
        if self.device == "cpu" and not has_gradients:
            return FastModel(loaded, torch.float32)
        return loaded

    def rows(
        self,
        faces: list[dict[str, Any]],  # rows of `FACES`
        shard_id: str = "",
        initial_codes: dict[str, NDArray[np.float32]] | None = None,  # image_id -> [n_styles, 512]
    ) -> InversionResult:
        """Invert `faces`; one without a finite code, or without its initial code, is a reject."""
        named = [(image_id(shard_id, face["key"], face["face_index"]), face) for face in faces]
        result = InversionResult()
        if self.settings.initial_codes != "none":
            named = self._with_initial_codes(named, initial_codes or {}, result.rejects)
        # With an adaptive stop, faces of later batches fill the places of those that stopped.
        window_size = self.batch_size * (BATCHES_PER_WINDOW if self.settings.method.stop else 1)
        pending: _Batch | None = None
        for batch in split_evenly(len(named), window_size):
            names, batch_faces = zip(*named[batch], strict=True)
            start = None
            if initial_codes is not None:
                start = torch.from_numpy(np.stack([initial_codes[name] for name in names]))
            with self._beginning:
                begun = self._begin(names, batch_faces, start)
            if pending:
                self._finish(result, pending)
            pending = begun
            if self.device == "cpu":  # which computes nothing by itself in the meantime
                self._finish(result, pending)
                pending = None
        if pending:
            self._finish(result, pending)
        return result

    def _with_initial_codes(
        self,
        named: list[tuple[str, dict[str, Any]]],
        initial_codes: dict[str, NDArray[np.float32]],
        rejects: list[dict[str, Any]],
    ) -> list[tuple[str, dict[str, Any]]]:
        """Return the faces that have an initial code; faces and codes without a match are rejects.

        If only some faces were chosen, other faces of the same image are skipped silently.
        """
        names = {name for name, _ in named}
        sources = {face["key"]: face for _, face in named}
        for name in sorted(initial_codes.keys() - names):
            key, index = name.split("/", 1)[1].rsplit("#", 1)
            if key in sources:
                rejection = Rejection(
                    RejectReason.NO_START, f"face {index}, which has a code, was not found again"
                )
                rejects.append(_reject(sources[key] | {"face_index": int(index)}, rejection))
        if self.settings.initial_codes == "all":
            missing = Rejection(RejectReason.NO_START, "the table to start from has no code of it")
            rejects += [_reject(face, missing) for name, face in named if name not in initial_codes]
        return [(name, face) for name, face in named if name in initial_codes]

    def _begin(
        self,
        names: Sequence[str],
        faces: Sequence[dict[str, Any]],
        start: Tensor | None,
    ) -> _Batch:
        """Start to invert and measure a batch."""
        images = to_tensor([face["pixels"] for face in faces], self.model.input_size, self.device)
        seconds = stopwatch(self.device)
        inversion = find_codes(
            self.settings.method,
            self.models,
            images,
            names,
            batch_size=self.batch_size,
            start=start,
            full_size=self.settings.keep_reconstructions,
        )
        taken = seconds()
        targets = images
        if "target" in faces[0]:
            pixels = [face["target"] for face in faces]
            targets = to_tensor(pixels, self.model.input_size, self.device)
        measures = self.meter.begin(
            targets,
            inversion.step_images,
            inversion.w_plus,
            self.model.latent_avg,
            start=inversion.start,
            # With a fixed number of steps all faces make them all.
            steps_made=inversion.steps_made if self.settings.method.stop else None,
        )
        results = {
            "w_plus": inversion.w_plus,
            "steps": inversion.steps_made,
            "passes": inversion.generator_passes,
        }
        converged = convergence(inversion, images, self.settings.method)
        if converged is not None:
            results["converged"] = converged
        return _Batch(names, faces, inversion, measures, download(results), taken)

    def _finish(self, result: InversionResult, batch: _Batch) -> None:
        """Wait for a batch, and add its rows and rejects to `result`."""
        rows = self._rows(batch)
        result.seconds += batch.seconds()
        for face, row in zip(batch.faces, rows, strict=True):
            if self._storable(row):
                result.latents.append(row)
            else:
                result.rejects.append(_reject(face, NOT_STORABLE))

    def _storable(self, row: dict[str, Any]) -> bool:
        """Return whether all stored values of a face are finite and fit the column's dtype."""
        codes = row.get("w_plus_per_step", row["w_plus"])
        return row["l2"] is not None and bool((np.abs(codes) <= self.settings.largest_code).all())

    def _rows(self, batch: _Batch) -> list[dict[str, Any]]:
        """Return the latents row of each face."""
        measures, results = batch.measures(), batch.results()
        pictures = self._pictures(batch, measures.best_step - 1, results["steps"])
        rows = []
        for index, (name, face) in enumerate(zip(batch.names, batch.faces, strict=True)):
            row = {name: value for name, value in face.items() if name not in _NOT_IN_ROWS}
            row |= self._code(index, results, int(measures.best_step[index]))
            row |= measures.row(index, int(results["steps"][index]))
            if self.settings.keep_identity:
                row[IDENTITY] = measures.identity(index)
            row["converged"] = bool(results["converged"][index]) if "converged" in results else None
            row["refined_from"] = name if self.settings.initial_codes != "none" else None
            rows.append(row | {name: jpegs[index] for name, jpegs in pictures.items()})
        return rows

    def _code(self, index: int, results: Arrays, best: int) -> dict[str, Any]:
        """Return the columns of a face's code and its cost."""
        codes, steps = results["w_plus"][index], int(results["steps"][index])
        row = {
            "w_plus": codes[best - 1],
            "method": self.settings.method.name,
            "steps": steps,
            "best_step": best,
            "generator_passes": int(results["passes"][index]),
        }
        if self.settings.keep_steps:
            row["w_plus_per_step"] = codes[:steps]
        return row

    def _pictures(
        self, batch: _Batch, best: NDArray[np.int32], steps: NDArray[np.int64]
    ) -> dict[str, list[bytes]]:
        """Return the JPEG columns that are kept: crops, and reconstructions at the best step."""
        columns = {}
        if self.settings.keep_crops:
            shape = (*self.model.input_size, 3)
            crops = [np.frombuffer(face["pixels"], np.uint8) for face in batch.faces]
            columns["aligned_jpeg"] = [jpeg_of(crop.reshape(shape)) for crop in crops]
        if self.settings.keep_reconstructions:
            frames = list(batch.inversion.images)
            earlier = (best < steps - 1).nonzero()[0].tolist()
            if earlier:
                codes = batch.inversion.w_plus[earlier, best[earlier].tolist()]
                with torch.no_grad():
                    rendered = list(render_each(self.model, codes))
                for face, frame in zip(earlier, rendered, strict=True):
                    frames[face] = frame
            levels = torch.stack([to_levels(frame).movedim(0, -1) for frame in frames])
            pixels = download({"pixels": levels})()["pixels"]
            columns["reconstruction_jpeg"] = [jpeg_of(frame) for frame in pixels]
        return columns


def stopwatch(device: str) -> Callable[[], Callable[[], float]]:
    """Start to count seconds; call the result to stop, and what that returns for the seconds.

    A GPU counts its own time, for which the last call waits.
    """
    if device != "cuda":
        began = time.perf_counter()

        def stop() -> Callable[[], float]:
            seconds = time.perf_counter() - began
            return lambda: seconds

        return stop
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()

    def stop_gpu() -> Callable[[], float]:
        last.record()

        def seconds_taken() -> float:
            last.synchronize()
            return float(first.elapsed_time(last)) / 1000

        return seconds_taken

    return stop_gpu


def _reject(face: dict[str, Any], rejection: Rejection) -> dict[str, Any]:
    source = (face["key"], face["source_uri"], face["source_sha256"])
    return reject_row(*source, rejection, face["face_index"])
