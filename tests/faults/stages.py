"""Stages whose results depend only on the bytes of an image, and need no computation."""

from __future__ import annotations

import hashlib
import os
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipeline.alignment import AlignmentSettings
from pipeline.engine.align import FACES, REJECTS, count_reasons, reject_row
from pipeline.engine.rows import Row, pack, run_stage, unpack
from pipeline.images import Rejection, RejectReason
from pipeline.table import Columns, latents_table

if TYPE_CHECKING:
    from pipeline.engine.inverter import InvertSettings

PACE = "FAULTS_PACE_S"  # seconds per part in each stage, so that faults can strike in the middle


def _work_a_while() -> None:
    time.sleep(float(os.environ.get(PACE, "0")))


class HashedAlign:
    """Aligner: the first byte of a sample's hash decides whether it has no face, one or two."""

    def __init__(self, settings: AlignmentSettings) -> None:
        self.settings = settings

    def __call__(self, row: Row) -> Row:
        return run_stage("align", self._work, row)

    def _work(self, row: Row) -> Row:
        _work_a_while()
        faces: list[dict[str, Any]] = []
        rejects: list[dict[str, Any]] = []
        for sample in unpack(row["payload"]).to_pylist():
            sha256 = hashlib.sha256(sample["content"]).hexdigest()
            source = (sample["key"], sample["uri"], sha256)
            count = (0, 1, 1, 1, 2)[int(sha256[:2], 16) % 5]
            if not count:
                rejects.append(reject_row(*source, Rejection(RejectReason.NO_FACE, "by its hash")))
            for index in range(count):
                fields = dict(zip(("key", "source_uri", "source_sha256"), source, strict=True))
                faces.append(fields | {"face_index": index, "n_faces": count})
        rejected = pa.Table.from_pylist(rejects, schema=REJECTS)
        row["payload"] = pack(pa.Table.from_pylist(faces, schema=FACES))
        row["rejected"] = pack(rejected)
        row["faces"], row["rejects"] = len(faces), len(rejects)
        row["reasons"] = count_reasons(rejected)
        return row


class HashedInvert:
    """Inverter: the code of a face is random numbers seeded by the hash of its image."""

    def __init__(self, settings: InvertSettings, columns: Columns) -> None:
        self.settings, self.columns = settings, columns
        self.names = set(columns.latents_schema().names) - {"image_id", "shard"}

    def __call__(self, row: Row) -> Row:
        return run_stage("invert", self._work, row)

    def _row(self, face: dict[str, Any]) -> dict[str, Any]:
        seed = int(face["source_sha256"][:12], 16) + face["face_index"]
        shape = (self.columns.n_styles, 512)
        code = np.random.default_rng(seed).standard_normal(shape, np.float32)
        measured = {"w_plus": code, "steps": 1, "best_step": 1, "method": "restyle"}
        return dict.fromkeys(self.names) | measured | face

    def _work(self, row: Row) -> Row:
        _work_a_while()
        faces = unpack(row["payload"]).drop_columns(["pixels", "fields"]).to_pylist()
        latents = latents_table([self._row(face) for face in faces], self.columns, row["shard_id"])
        row["payload"] = pack(latents)
        return row
