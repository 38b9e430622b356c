"""Stage 3, a pool of inverter actors, one a GPU: faces in, codes and their measures out."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor

from pipeline.engine.align import REJECTS, count_reasons, reject_row
from pipeline.engine.rows import Row, pack, run_stage, unpack
from pipeline.images import Rejection, RejectReason
from pipeline.inversion import Inversion, invert, keep_freed_memory
from pipeline.metrics import Measures, Meter
from pipeline.models import RestyleModel, load_model
from pipeline.table import Columns, latents_table

BATCH = {"cpu": 16, "cuda": 32}
JPEG_QUALITY = 95


@dataclass(frozen=True)
class InvertSettings:
    """What an inverter actor is built from."""

    model: str
    steps: int
    identity: str
    best_step_by: Any
    device: str = "auto"
    largest_code: float = float(np.finfo(np.float16).max)  # of a number in a code, for the table
    batch_size: int | None = None
    keep_steps: bool = False
    keep_crops: bool = False
    keep_reconstructions: bool = False


def even_batches(count: int, largest: int) -> list[slice]:
    """Cut `count` rows into the fewest batches of at most `largest`, of nearly equal length."""
    batches = -(-count // largest)
    edges = [round(i * count / batches) for i in range(batches + 1)] if batches else [0]
    return [slice(a, b) for a, b in itertools.pairwise(edges)]


def to_tensor(pixels: list[bytes], size: tuple[int, int]) -> Tensor:
    """uint8 crops of (height, width) `size` to float32 [n, 3, h, w] in [-1, 1]."""
    stacked = np.stack([np.frombuffer(crop, np.uint8).reshape(*size, 3) for crop in pixels])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float().div(255).sub(0.5).div(0.5)


def to_jpeg(image: Tensor) -> bytes:
    """One image [3, h, w] in [-1, 1] as JPEG bytes, rounded to 8 bits."""
    pixels = image.clamp(-1, 1).add(1).mul(127.5).round().byte().permute(1, 2, 0)
    sink = io.BytesIO()
    Image.fromarray(pixels.cpu().numpy()).save(sink, "JPEG", quality=JPEG_QUALITY)
    return sink.getvalue()


def _optional(value: float) -> float | None:
    """A measure as the table has it: null where there is no number."""
    return None if np.isnan(value) else float(value)


class Inverter:
    """Loads the model and the metric networks once; turns faces into latents rows."""

    def __init__(self, settings: InvertSettings) -> None:
        self.settings = settings
        # Ray shows a GPU to actors that asked for none, too.
        on_gpu = settings.device != "cpu" and torch.cuda.is_available()
        self.device = "cuda" if on_gpu else "cpu"
        if not on_gpu:
            keep_freed_memory()
        self.model: RestyleModel = load_model(settings.model, device=self.device)
        self.meter = Meter(self.device, settings.identity, settings.best_step_by)
        self.batch_size = settings.batch_size or BATCH[self.device]

    def rows(
        self, faces: list[dict[str, Any]]
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Latents rows and reject rows (`not_finite`) of `faces`, rows of `FACES`."""
        latents: list[dict[str, Any]] = []
        rejects: list[dict[str, Any]] = []
        for batch in even_batches(len(faces), self.batch_size):
            for face, row in self._batch(faces[batch]):
                if row is None:
                    rejection = Rejection(
                        RejectReason.NOT_FINITE, "the code or image is not finite, or too large"
                    )
                    source = (face["key"], face["source_uri"], face["source_sha256"])
                    rejects.append(reject_row(*source, rejection, face["face_index"]))
                else:
                    latents.append(row)
        return latents, rejects

    def _batch(
        self, faces: list[dict[str, Any]]
    ) -> Iterator[tuple[dict[str, Any], dict[str, Any] | None]]:
        images = to_tensor([face["pixels"] for face in faces], self.model.input_size)
        result = invert(self.model, images.to(self.device), steps=self.settings.steps)
        measures = self.meter.measure(
            images, result.step_images, result.w_plus, self.model.latent_avg
        )
        storable = result.w_plus.abs().flatten(1).amax(dim=1) <= self.settings.largest_code
        finite = (result.finite & storable).cpu().numpy()
        for index, face in enumerate(faces):
            row = self._row(face, index, images, result, measures) if finite[index] else None
            yield face, row

    def _row(
        self,
        face: dict[str, Any],
        index: int,
        images: Tensor,
        result: Inversion,
        measures: Measures,
    ) -> dict[str, Any]:
        best = int(measures.best_step[index]) - 1
        row = {name: value for name, value in face.items() if name != "pixels"}
        row |= {
            "w_plus": result.w_plus[index, best].cpu().numpy(),
            "method": "restyle",
            "steps": self.settings.steps,
            "best_step": best + 1,
            "generator_passes": self.settings.steps,
            "refined_from": None,
            "w_plus_variance": float(measures.w_plus_variance[index]),
            "w_avg_distance": float(measures.w_avg_distance[index]),
            "converged": None,
        }
        for name in ("l2", "psnr", "lpips", "id_similarity"):
            values = getattr(measures, name)[index]
            row[name] = _optional(values[best])
            row[f"{name}_per_step"] = [_optional(value) for value in values]
        row["residual_norm_per_step"] = measures.residual_norm[index].tolist()
        if self.settings.keep_steps:
            row["w_plus_per_step"] = result.w_plus[index].cpu().numpy()
        if self.settings.keep_crops:
            row["aligned_jpeg"] = to_jpeg(images[index])
        if self.settings.keep_reconstructions:
            row["reconstruction_jpeg"] = to_jpeg(result.images[index])
        return row


class InvertStage:
    """The inverter over parts: forms batches inside a part, so that a retry sees the same ones."""

    def __init__(self, settings: InvertSettings, columns: Columns) -> None:
        self.inverter = Inverter(settings)
        self.columns = columns

    def __call__(self, row: Row) -> Row:
        return run_stage("invert", self._work, row)

    def _work(self, row: Row) -> Row:
        latents, not_finite = self.inverter.rows(unpack(row["payload"]).to_pylist())
        row["payload"] = pack(latents_table(latents, self.columns, row["shard_id"]))
        if not_finite:
            more = pa.Table.from_pylist(not_finite, schema=REJECTS)
            rejected = pa.concat_tables([unpack(row["rejected"]), more])
            row["rejected"], row["reasons"] = pack(rejected), count_reasons(rejected)
            row["rejects"] = rejected.num_rows
        row["faces"] = len(latents)
        return row
