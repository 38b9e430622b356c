"""Stage 3, a pool of inverter actors, one per GPU: faces to latents."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.engine.messages import FaceBatch, LatentBatch
from pipeline.engine.stages.align import REJECTS, count_reasons
from pipeline.engine.stages.base import JobStage, StageResources
from pipeline.table import Columns, as_array, image_id, latents_table

if TYPE_CHECKING:
    from pipeline.choices import Device
    from pipeline.engine.inverter import Inverter, InvertSettings
    from pipeline.engine.resolve import Recipe
    from pipeline.table import TableWriter

Codes = dict[str, NDArray[np.float32]]  # image id -> [n_styles, 512]


class Invert(JobStage):
    """Inverts parts; batches stay inside a part, so that a retry sees the same ones."""

    name = "invert"
    takes = FaceBatch
    # An actor with a GPU has two parts: one is unpacked or packed while the other is inverted.
    resources = StageResources("inverter", cpus=0.9, takes_gpu=True, parts_at_once=2)

    def __init__(self, settings: InvertSettings, columns: Columns) -> None:
        self.settings, self.columns = settings, columns

    @classmethod
    def of(cls, recipe: Recipe, writer: TableWriter, device: Device) -> Self:
        """Return the stage of a job."""
        del writer
        # An actor with a GPU must not invert on the CPU of a node whose driver is broken.
        return cls(replace(recipe.inversion, device=device), recipe.columns)

    def setup(self) -> None:
        """Load the models and the metric networks."""
        from pipeline.engine.inverter import Inverter

        self.inverter: Inverter = Inverter(self.settings)
        self.lock = threading.Lock()

    def process(self, batch: FaceBatch) -> LatentBatch:
        """Return the latents rows of a part; faces without a code become rejects."""
        faces = batch.faces.to_pylist()
        starts = None if batch.start is None else codes_by_image(batch.start)
        with self.lock:
            began = time.perf_counter()
            account = self.inverter.rows(faces, batch.shard_id, starts)
            seconds = time.perf_counter() - began
        latents = _with_fields(account.latents, faces) if self.columns.kept else account.latents
        earlier = self._of_chosen(batch.rejects.to_pylist(), batch.shard_id, starts)
        rejects = pa.Table.from_pylist(_each_once(earlier, account.rejects), schema=REJECTS)
        counts = replace(
            batch.counts,
            faces=len(account.latents),
            rejects=rejects.num_rows,
            reasons=count_reasons(rejects),
            identity_missed=self._identity_missed(account.latents),
            inversion_seconds=account.seconds,
        )
        counts.stage_seconds[self.name] = seconds  # type: ignore[assignment]
        table = latents_table(latents, self.columns, batch.shard_id)
        return LatentBatch(batch.shard, batch.part, counts, table, rejects)

    def _identity_missed(self, latents: list[dict[str, Any]]) -> int:
        """Return the faces without an identity; 0 where none is measured."""
        if self.inverter.meter.identity is None:
            return 0
        return sum(face["id_similarity"] is None for face in latents)

    def _of_chosen(
        self, rejects: list[dict[str, Any]], shard_id: str, starts: Codes | None
    ) -> list[dict[str, Any]]:
        """Return the aligner's rejects without the faces that were not chosen."""
        if self.settings.starts != "chosen":
            return rejects
        names = [image_id(shard_id, reject["key"], reject["face_index"]) for reject in rejects]
        return [
            reject
            for name, reject in zip(names, rejects, strict=True)
            if reject["face_index"] is None or name in (starts or {})
        ]


def _each_once(earlier: list[dict[str, Any]], later: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Both lists; a face that the aligner rejected is not missed a second time for its code."""
    known = {(reject["key"], reject["face_index"]) for reject in earlier}
    return earlier + [r for r in later if (r["key"], r["face_index"]) not in known]


def _with_fields(
    latents: list[dict[str, Any]], faces: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Latents rows with the fields that their faces carry over from the input."""
    fields = {face["key"]: json.loads(face["fields"]) for face in faces}
    return [row | fields[row["key"]] for row in latents]


def codes_by_image(starts: pa.Table) -> Codes:
    """The codes [n_styles, 512] of a table as `initial_codes_schema` has it, by image id."""
    return dict(zip(starts["image_id"].to_pylist(), as_array(starts["w_plus"]), strict=True))
