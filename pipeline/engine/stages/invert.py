"""Stage 3, a pool of inverter actors, one per GPU: turn faces into latents."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.engine.messages import FaceBatch, LatentBatch
from pipeline.engine.stages.align import count_reasons
from pipeline.engine.stages.base import Stage, StageResources
from pipeline.table import Columns, image_id
from pipeline.table.schema import codes_of

if TYPE_CHECKING:
    from pipeline.engine.inverter import Inverter, InvertSettings

Codes = dict[str, NDArray[np.float32]]  # image id -> [n_styles, 512]


class Invert(Stage):
    """Inverts parts; batches stay inside a part, so that a retry sees the same ones."""

    name = "invert"
    takes = FaceBatch
    # An actor with a GPU has two parts: one is unpacked or packed while the other is inverted.
    resources = StageResources("inverter", cpus=0.9, takes_gpu=True, parts_at_once=2)

    def __init__(self, settings: InvertSettings, columns: Columns) -> None:
        self.settings, self.columns = settings, columns

    def setup(self) -> None:
        """Load the models and the metric networks."""
        from pipeline.engine.inverter import Inverter

        self.inverter: Inverter = Inverter(self.settings)
        self.lock = threading.Lock()
        self.ended = 0.0  # when the last part was inverted

    def process(self, batch: FaceBatch) -> LatentBatch:
        """Return the latents rows of a part; faces without a code become rejects."""
        faces = faces_of(batch.faces)
        codes = None if batch.initial_codes is None else codes_by_image(batch.initial_codes)
        began = time.perf_counter()
        result = self.inverter.rows(faces, batch.shard_id, codes)
        with self.lock:
            began, self.ended = max(began, self.ended), time.perf_counter()
            seconds = self.ended - began  # parts overlap: time of two counts once
        latents = _with_fields(result.latents, faces) if self.columns.kept else result.latents
        earlier = self._of_chosen(batch.rejects.to_pylist(), batch.shard_id, codes)
        rejects = _each_once(earlier, result.rejects)
        missed = sum(face["id_similarity"] is None for face in result.latents)
        counts = replace(
            batch.counts,
            faces=len(result.latents),
            rejects=len(rejects),
            reasons=count_reasons(rejects),
            identity_missed=missed if self.inverter.meter.identity else 0,  # without, none is due
            inversion_seconds=result.seconds,
        )
        counts.stage_seconds[self.name] = seconds  # type: ignore[assignment]
        return LatentBatch(batch.shard, batch.part, counts, latents, rejects)

    def _of_chosen(
        self, rejects: list[dict[str, Any]], shard_id: str, codes: Codes | None
    ) -> list[dict[str, Any]]:
        """Return the aligner's rejects without the faces that were not chosen."""
        if self.settings.initial_codes != "chosen":
            return rejects
        names = [image_id(shard_id, reject["key"], reject["face_index"]) for reject in rejects]
        return [
            reject
            for name, reject in zip(names, rejects, strict=True)
            if reject["face_index"] is None or name in (codes or {})
        ]


def faces_of(table: pa.Table) -> list[dict[str, Any]]:
    """Return the rows of a `FACES` table; their images are views of its memory, not copies."""
    images = [name for name in ("pixels", "target") if name in table.column_names]
    rows: list[dict[str, Any]] = table.drop_columns(images).to_pylist()
    for name in images:
        for row, view in zip(rows, _views(table[name]), strict=True):
            row[name] = view
    return rows


def _views(column: pa.ChunkedArray) -> Iterator[memoryview]:
    """Yield the values of a large binary column without nulls."""
    for chunk in filter(len, column.chunks):
        _, ends, content = chunk.buffers()
        edges = np.frombuffer(ends, np.int64)[chunk.offset :][: len(chunk) + 1]
        for start, end in itertools.pairwise(edges.tolist()):
            yield memoryview(content)[start:end]


def _each_once(earlier: list[dict[str, Any]], later: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return both lists; a face that the aligner rejected is not rejected again for its code."""
    rejected = {(reject["key"], reject["face_index"]) for reject in earlier}
    return earlier + [r for r in later if (r["key"], r["face_index"]) not in rejected]


def _with_fields(
    latents: list[dict[str, Any]], faces: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return latents rows with the fields of their faces that are copied from the input."""
    fields = {face["key"]: json.loads(face["fields"]) for face in faces}
    return [row | fields[row["key"]] for row in latents]


def codes_by_image(table: pa.Table) -> Codes:
    """Return the codes [n_styles, 512] of an `initial_codes_schema` table by image id."""
    return dict(zip(table["image_id"].to_pylist(), codes_of(table["w_plus"]), strict=True))
