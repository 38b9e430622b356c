"""Faces to rows of the latents table: codes, their measures, and pictures of them."""

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

BATCH = {"cpu": 16, "cuda": 32}
TURNS = 8  # batches of faces that share one adaptive batch: bounds the images of all their steps
JPEG_QUALITY = 95


@dataclass(frozen=True)
class InvertSettings:
    """What an inverter actor is built from."""

    model: str
    method: Method = field(default_factory=Method)
    first: str | None = None  # the model that a bootstrapped inversion begins with
    starts: Literal["none", "all", "chosen"] = "none"  # which faces have a code to start from
    identity: str = "dlib"
    best_step_by: BestStepBy = "lpips"
    device: Device = "auto"
    precision: Precision = "float32"
    largest_code: float = float(np.finfo(np.float16).max)  # of a number in a code, for the table
    batch_size: int | None = None
    keep_steps: bool = False
    keep_crops: bool = False
    keep_reconstructions: bool = False
    hints: ModelHints = field(default_factory=lambda: ModelHints())  # what the file does not tell


def even_batches(count: int, largest: int) -> list[slice]:
    """Cut `count` rows into the fewest batches of at most `largest`, of nearly equal length."""
    batches = -(-count // largest)
    edges = [round(i * count / batches) for i in range(batches + 1)] if batches else [0]
    return [slice(a, b) for a, b in itertools.pairwise(edges)]


def to_tensor(pixels: list[bytes], size: tuple[int, int]) -> Tensor:
    """uint8 crops of (height, width) `size` to float32 [n, 3, h, w] in [-1, 1]."""
    return to_unit(np.stack([np.frombuffer(crop, np.uint8).reshape(*size, 3) for crop in pixels]))


def to_jpeg(image: Tensor) -> bytes:
    """One image [3, h, w] in [-1, 1] as JPEG bytes, rounded to 8 bits."""
    sink = io.BytesIO()
    Image.fromarray(to_pixels(image)).save(sink, "JPEG", quality=JPEG_QUALITY)
    return sink.getvalue()


@dataclass
class Account:
    """What a part's faces became."""

    latents: list[dict[str, Any]] = field(default_factory=list)  # rows of the latents table
    rejects: list[dict[str, Any]] = field(default_factory=list)  # rows of `REJECTS`
    seconds: float = 0.0  # of the method alone


# Of a row of `FACES`; the fields are put into their columns where the table is written.
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
        starts: dict[str, NDArray[np.float32]] | None = None,  # image_id -> [n_styles, 512]
    ) -> Account:
        """Latents of `faces`, and rejects for what has no code or nothing to start from."""
        named = [(image_id(shard_id, face["key"], face["face_index"]), face) for face in faces]
        account = Account()
        if self.settings.starts != "none":
            named = self._that_start(named, starts or {}, account.rejects)
        # Faces of an adaptive stop take turns, so that their batch stays full.
        window = self.batch_size * (TURNS if self.settings.method.stop else 1)
        for batch in even_batches(len(named), window):
            names, few = zip(*named[batch], strict=True)
            begun = None
            if starts is not None:
                begun = torch.from_numpy(np.stack([starts[name] for name in names]))
            self._add_batch(account, names, few, begun)
        return account

    def _that_start(
        self,
        named: list[tuple[str, dict[str, Any]]],
        starts: dict[str, NDArray[np.float32]],
        rejects: list[dict[str, Any]],
    ) -> list[tuple[str, dict[str, Any]]]:
        """The faces that have a code to start from; what does not pair up becomes a reject.

        Where only some faces were chosen, another face of the same image is none of ours.
        """
        found = {name for name, _ in named}
        sources = {face["key"]: face for _, face in named}
        for name in sorted(starts.keys() - found):
            key, index = name.split("/", 1)[1].rsplit("#", 1)
            if key in sources:
                rejection = Rejection(
                    RejectReason.NO_START, f"face {index}, which has a code, was not found again"
                )
                rejects.append(_reject(sources[key] | {"face_index": int(index)}, rejection))
        if self.settings.starts == "all":
            missing = Rejection(RejectReason.NO_START, "the table to start from has no code of it")
            rejects += [_reject(face, missing) for name, face in named if name not in starts]
        return [(name, face) for name, face in named if name in starts]

    def _add_batch(
        self,
        account: Account,
        names: Sequence[str],
        faces: Sequence[dict[str, Any]],
        start: Tensor | None,
    ) -> None:
        images = to_tensor([face["pixels"] for face in faces], self.model.input_size)
        images = images.to(self.device)
        began = self._clock()
        result = find_codes(
            self.settings.method,
            self.models,
            images,
            names,
            batch_size=self.batch_size,
            start=start,
            full_size=self.settings.keep_reconstructions,
        )
        account.seconds += self._clock() - began
        for face, row in zip(faces, self._rows(names, faces, images, result), strict=True):
            if self._storable(row):
                account.latents.append(row)
            else:
                account.rejects.append(_reject(face, NOT_STORABLE))

    def _storable(self, row: dict[str, Any]) -> bool:
        """Whether what the table keeps of a face are numbers; a later step may have gone astray."""
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
        result: Inversion,
    ) -> list[dict[str, Any]]:
        """The latents row of each face."""
        targets = images
        if "target" in faces[0]:
            targets = to_tensor([face["target"] for face in faces], self.model.input_size)
        measures = self.meter.measure(
            targets.to(self.device),
            result.step_images,
            result.w_plus,
            self.model.latent_avg,
            start=result.start,
            steps_made=result.steps_made,
        )
        ends = convergence_flags(result, images, self.settings.method)
        pictures = self._pictures(images, result, torch.from_numpy(measures.best_step) - 1)
        rows = []
        for index, face in enumerate(faces):
            row = {name: value for name, value in face.items() if name not in _NOT_IN_ROWS}
            row |= self._code(index, result, measures)
            row |= measures.row(index, int(result.steps_made[index]))
            row["converged"] = ends[index]
            row["refined_from"] = names[index] if self.settings.starts != "none" else None
            rows.append(row | {name: jpegs[index] for name, jpegs in pictures.items()})
        return rows

    def _code(self, index: int, result: Inversion, measures: Measures) -> dict[str, Any]:
        """A face's code, and what it took to find it."""
        best, made = int(measures.best_step[index]), int(result.steps_made[index])
        row = {
            "w_plus": result.w_plus[index, best - 1].cpu().numpy(),
            "method": self.settings.method.name,
            "steps": made,
            "best_step": best,
            "generator_passes": int(result.generator_passes[index]),
        }
        if self.settings.keep_steps:
            row["w_plus_per_step"] = result.w_plus[index, :made].cpu().numpy()
        return row

    def _pictures(self, images: Tensor, result: Inversion, best: Tensor) -> dict[str, list[bytes]]:
        """The pictures that are kept, of each face: its crop, and what its code looks like."""
        kept = {}
        if self.settings.keep_crops:
            kept["aligned_jpeg"] = [to_jpeg(image) for image in images]
        if self.settings.keep_reconstructions:
            frames = list(result.images)
            earlier = (best < result.steps_made.cpu() - 1).nonzero()[:, 0].tolist()
            if earlier:
                codes = result.w_plus[earlier, best[earlier]]
                with torch.no_grad():
                    made = list(render_each(self.model, codes))
                for face, frame in zip(earlier, made, strict=True):
                    frames[face] = frame
            kept["reconstruction_jpeg"] = [to_jpeg(frame) for frame in frames]
        return kept


def _reject(face: dict[str, Any], rejection: Rejection) -> dict[str, Any]:
    source = (face["key"], face["source_uri"], face["source_sha256"])
    return reject_row(*source, rejection, face["face_index"])
