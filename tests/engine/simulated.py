"""Stages that do no work: what is left is the engine's own cost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.alignment import AlignmentSettings
from pipeline.engine.align import FACES, REJECTS
from pipeline.engine.invert import InvertSettings
from pipeline.engine.rows import Row, pack, run_stage, unpack
from pipeline.table import Columns, latents_table


class SimulatedAlign:
    """Takes every sample for one face of no pixels."""

    def __init__(self, settings: AlignmentSettings) -> None:
        self.settings = settings

    def __call__(self, row: Row) -> Row:
        return run_stage("align", self._work, row)

    def _work(self, row: Row) -> Row:
        samples = unpack(row["payload"])
        columns = {name: pa.nulls(len(samples), FACES.field(name).type) for name in FACES.names}
        columns |= {"key": samples["key"], "source_uri": samples["uri"]}
        for name, number in (("face_index", 0), ("n_faces", 1)):
            columns[name] = pa.array(np.full(len(samples), number, np.int32))
        row["payload"] = pack(pa.table(columns, schema=FACES))
        row["rejected"] = pack(REJECTS.empty_table())
        row["faces"] = len(samples)
        return row


class SimulatedInvert:
    """Gives every face the code of zeros."""

    def __init__(self, settings: InvertSettings, columns: Columns) -> None:
        self.settings, self.columns = settings, columns
        names = set(columns.latents_schema().names) - {"image_id", "shard"}
        code = np.zeros((columns.n_styles, 512), np.float32)
        self.measures = dict.fromkeys(names) | {"w_plus": code, "steps": 0, "best_step": 0}

    def __call__(self, row: Row) -> Row:
        return run_stage("invert", self._work, row)

    def _work(self, row: Row) -> Row:
        faces = unpack(row["payload"]).drop_columns(["pixels"]).to_pylist()
        rows: list[dict[str, Any]] = [self.measures | face for face in faces]
        row["payload"] = pack(latents_table(rows, self.columns, row["shard_id"]))
        return row
