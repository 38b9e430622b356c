"""Stage 3, a pool of inverter actors, one a GPU: parts of faces in, parts of latents out."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.engine.align import REJECTS, count_reasons
from pipeline.engine.inverter import Inverter, InvertSettings
from pipeline.engine.node_registry import wait_for_verdict
from pipeline.engine.rows import Row, pack, run_stage, unpack
from pipeline.table import Columns, as_array, image_id, latents_table


class InvertStage:
    """The inverter over parts: forms batches inside a part, so that a retry sees the same ones."""

    def __init__(self, settings: InvertSettings, columns: Columns) -> None:
        wait_for_verdict()
        self.inverter = Inverter(settings)
        self.columns = columns
        # An actor with a GPU has two parts: one is unpacked or packed while the other is inverted.
        self.turn = threading.Lock()

    def __call__(self, row: Row) -> Row:
        return run_stage("invert", self._work, row)

    def _work(self, row: Row) -> Row:
        faces = unpack(row["payload"]).to_pylist()
        # Empty where none travelled with the part.
        starts = codes_by_image(unpack(row["start"])) if row["start"] else None
        with self.turn:
            began = time.perf_counter()
            account = self.inverter.rows(faces, row["shard_id"], starts)
            row["invert_seconds"] = time.perf_counter() - began
        latents = _with_fields(account.latents, faces) if self.columns.kept else account.latents
        row["payload"] = pack(latents_table(latents, self.columns, row["shard_id"]))
        row["start"] = b""
        earlier = self._wanted(unpack(row["rejected"]).to_pylist(), row["shard_id"], starts)
        rejected = pa.Table.from_pylist(_each_once(earlier, account.rejects), schema=REJECTS)
        row["rejected"], row["reasons"] = pack(rejected), count_reasons(rejected)
        row["rejects"] = rejected.num_rows
        row["faces"], row["inversion_seconds"] = len(account.latents), account.seconds
        if self.inverter.meter.identity is not None:
            known = [face["id_similarity"] is not None for face in account.latents]
            row["identity_missed"] = known.count(False)
        return row

    def _wanted(
        self,
        rejects: list[dict[str, Any]],
        shard_id: str,
        starts: dict[str, NDArray[np.float32]] | None,
    ) -> list[dict[str, Any]]:
        """The aligner's rejects, without the faces that were not chosen."""
        if self.inverter.settings.starts != "chosen":
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


def codes_by_image(starts: pa.Table) -> dict[str, NDArray[np.float32]]:
    """The codes [n_styles, 512] of a table as `initial_codes_schema` has it, by image id."""
    return dict(zip(starts["image_id"].to_pylist(), as_array(starts["w_plus"]), strict=True))
