"""Turn faces into rows of the latents table: codes, metrics, and images of them."""

from __future__ import annotations

import io
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipeline.choices import BestStepBy, Device, Precision
from pipeline.engine.stages.align import reject_row
from pipeline.images import Rejection, RejectReason
from pipeline.inversion import Inversion, keep_freed_memory, ready_device
from pipeline.inversion.methods import Method, Models, convergence_flags, find_codes
from pipeline.inversion.render import render_each
from pipeline.metrics import Measures, MetricEvaluator
from pipeline.models import RestyleModel, load_model
from pipeline.models.files import ModelHints
from pipeline.models.pixels import to_pixels, to_unit
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
    best_step_by: BestStepBy = "lpips"
    device: Device = "auto"
    precision: Precision = "float32"
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


def to_tensor(pixels: list[bytes], size: tuple[int, int]) -> Tensor:
    """Convert uint8 crops of (height, width) `size` to float32 [n, 3, h, w] in [-1, 1]."""
    return to_unit(np.stack([np.frombuffer(crop, np.uint8).reshape(*size, 3) for crop in pixels]))


def to_jpeg(image: Tensor) -> bytes:
    """Encode an image [3, h, w] in [-1, 1] as JPEG bytes, rounded to 8 bits."""
    sink = io.BytesIO()
    Image.fromarray(to_pixels(image)).save(sink, "JPEG", quality=JPEG_QUALITY)
    return sink.getvalue()


@dataclass
class InversionResult:
    """Result of a part's faces: rows for the table, and rejects."""

    latents: list[dict[str, Any]] = field(default_factory=list)  # rows of the latents table
    rejects: list[dict[str, Any]] = field(default_factory=list)  # rows of `REJECTS`
    seconds: float = 0.0  # of the inversion method alone


# Keys of a `FACES` row that are not columns; `fields` is split into columns by the stage.
_NOT_IN_ROWS = ("pixels", "target", "fields")
NOT_STORABLE = Rejection(RejectReason.NOT_FINITE, "the code or image is not finite, or too large")


class Inverter:
    """Loads the models and the metric networks once; turns faces into latents rows."""

    def __init__(self, settings: InvertSettings) -> None:
        self.settings = settings
        self.device = ready_device(settings.device, settings.precision)
        if self.device == "cpu":
            keep_freed_memory()
        self.model: RestyleModel = load_model(settings.model, device=self.device, **settings.hints)
        self.meter = MetricEvaluator(self.device, settings.identity, settings.best_step_by)
        first = load_model(settings.first, device=self.device) if settings.first else None
        self.models = Models(self.model, first, perceptual=self.meter.lpips)
        self.batch_size = settings.batch_size or BATCH[self.device]

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
        for batch in split_evenly(len(named), window_size):
            names, batch_faces = zip(*named[batch], strict=True)
            start = None
            if initial_codes is not None:
                start = torch.from_numpy(np.stack([initial_codes[name] for name in names]))
            self._add_batch(result, names, batch_faces, start)
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

    def _add_batch(
        self,
        result: InversionResult,
        names: Sequence[str],
        faces: Sequence[dict[str, Any]],
        start: Tensor | None,
    ) -> None:
        images = to_tensor([face["pixels"] for face in faces], self.model.input_size)
        images = images.to(self.device)
        began = self._clock()
        inversion = find_codes(
            self.settings.method,
            self.models,
            images,
            names,
            batch_size=self.batch_size,
            start=start,
            full_size=self.settings.keep_reconstructions,
        )
        result.seconds += self._clock() - began
        for face, row in zip(faces, self._rows(names, faces, images, inversion), strict=True):
            if self._storable(row):
                result.latents.append(row)
            else:
                result.rejects.append(_reject(face, NOT_STORABLE))

    def _storable(self, row: dict[str, Any]) -> bool:
        """Return whether all stored values of a face are finite and fit the column's dtype."""
        codes = row.get("w_plus_per_step", row["w_plus"])
        return row["l2"] is not None and bool((np.abs(codes) <= self.settings.largest_code).all())

    def _clock(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def _rows(
        self,
        names: Sequence[str],
        faces: Sequence[dict[str, Any]],
        images: Tensor,
        inversion: Inversion,
    ) -> list[dict[str, Any]]:
        """Return the latents row of each face."""
        targets = images
        if "target" in faces[0]:
            targets = to_tensor([face["target"] for face in faces], self.model.input_size)
        measures = self.meter.measure(
            targets.to(self.device),
            inversion.step_images,
            inversion.w_plus,
            self.model.latent_avg,
            start=inversion.start,
            steps_made=inversion.steps_made,
        )
        ends = convergence_flags(inversion, images, self.settings.method)
        pictures = self._pictures(images, inversion, torch.from_numpy(measures.best_step) - 1)
        rows = []
        for index, face in enumerate(faces):
            row = {name: value for name, value in face.items() if name not in _NOT_IN_ROWS}
            row |= self._code(index, inversion, measures)
            row |= measures.row(index, int(inversion.steps_made[index]))
            if self.settings.keep_identity:
                row[IDENTITY] = measures.identity(index)
            row["converged"] = ends[index]
            row["refined_from"] = names[index] if self.settings.initial_codes != "none" else None
            rows.append(row | {name: jpegs[index] for name, jpegs in pictures.items()})
        return rows

    def _code(self, index: int, inversion: Inversion, measures: Measures) -> dict[str, Any]:
        """Return the columns of a face's code and its cost."""
        best, steps = int(measures.best_step[index]), int(inversion.steps_made[index])
        row = {
            "w_plus": inversion.w_plus[index, best - 1].cpu().numpy(),
            "method": self.settings.method.name,
            "steps": steps,
            "best_step": best,
            "generator_passes": int(inversion.generator_passes[index]),
        }
        if self.settings.keep_steps:
            row["w_plus_per_step"] = inversion.w_plus[index, :steps].cpu().numpy()
        return row

    def _pictures(
        self, images: Tensor, inversion: Inversion, best: Tensor
    ) -> dict[str, list[bytes]]:
        """Return the JPEG columns that are kept: crops, and reconstructions at the best step."""
        columns = {}
        if self.settings.keep_crops:
            columns["aligned_jpeg"] = [to_jpeg(image) for image in images]
        if self.settings.keep_reconstructions:
            frames = list(inversion.images)
            earlier = (best < inversion.steps_made.cpu() - 1).nonzero()[:, 0].tolist()
            if earlier:
                codes = inversion.w_plus[earlier, best[earlier]]
                with torch.no_grad():
                    rendered = list(render_each(self.model, codes))
                for face, frame in zip(earlier, rendered, strict=True):
                    frames[face] = frame
            columns["reconstruction_jpeg"] = [to_jpeg(frame) for frame in frames]
        return columns


def _reject(face: dict[str, Any], rejection: Rejection) -> dict[str, Any]:
    source = (face["key"], face["source_uri"], face["source_sha256"])
    return reject_row(*source, rejection, face["face_index"])
