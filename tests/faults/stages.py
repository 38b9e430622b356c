"""Stages whose results depend only on the bytes of an image, and need no computation."""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.engine.messages import FaceBatch, LatentBatch, SampleBatch
from pipeline.engine.stages import Align, Invert, Read, Write
from pipeline.engine.stages.align import FACES, REJECTS, count_reasons, reject_row
from pipeline.images import Rejection, RejectReason

PACE = "FAULTS_PACE_S"  # seconds per part in each stage, so that faults can strike in the middle


def _work_a_while() -> None:
    time.sleep(float(os.environ.get(PACE, "0")))


class HashedAlign(Align):
    """Aligner: the first byte of a sample's hash decides whether it has no face, one or two."""

    def setup(self) -> None:
        """Start no child."""

    def process(self, batch: SampleBatch) -> FaceBatch:
        """Return the faces of a part."""
        _work_a_while()
        faces: list[dict[str, Any]] = []
        rejects: list[dict[str, Any]] = []
        for sample in batch.samples.to_pylist():
            sha256 = hashlib.sha256(sample["content"]).hexdigest()
            source = (sample["key"], sample["uri"], sha256)
            count = (0, 1, 1, 1, 2)[int(sha256[:2], 16) % 5]
            if not count:
                rejects.append(reject_row(*source, Rejection(RejectReason.NO_FACE, "by its hash")))
            for index in range(count):
                fields = dict(zip(("key", "source_uri", "source_sha256"), source, strict=True))
                faces.append(fields | {"face_index": index, "n_faces": count})
        rejected = pa.Table.from_pylist(rejects, schema=REJECTS)
        counts = replace(
            batch.counts,
            faces=len(faces),
            rejects=len(rejects),
            reasons=count_reasons(rejects),
        )
        table = pa.Table.from_pylist(faces, schema=FACES)
        return FaceBatch(batch.shard, batch.part, counts, table, rejected)


class HashedInvert(Invert):
    """Inverter: the code of a face is random numbers seeded by the hash of its image."""

    def setup(self) -> None:
        """Load no model."""
        self.names = set(self.columns.latents_schema().names) - {"image_id", "shard"}

    def _row(self, face: dict[str, Any]) -> dict[str, Any]:
        seed = int(face["source_sha256"][:12], 16) + face["face_index"]
        shape = (self.columns.n_styles, 512)
        code = np.random.default_rng(seed).standard_normal(shape, np.float32)
        measured = {"w_plus": code, "steps": 1, "best_step": 1, "method": "restyle"}
        return dict.fromkeys(self.names) | measured | face

    def process(self, batch: FaceBatch) -> LatentBatch:
        """Return the latents of a part."""
        _work_a_while()
        faces = batch.faces.drop_columns(["pixels", "fields"]).to_pylist()
        rows = [self._row(face) for face in faces]
        rejects = batch.rejects.to_pylist()
        return LatentBatch(batch.shard, batch.part, batch.counts, rows, rejects)


HASHED = (Read, HashedAlign, HashedInvert, Write)
