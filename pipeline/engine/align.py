"""Stage 2, a pool of CPU actors: decode, detect, align. Samples in, faces and rejects out."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from pipeline.alignment import AlignedFace, Alignment, AlignmentSettings, IsolatedAligner
from pipeline.engine.node_registry import wait_for_verdict
from pipeline.engine.rows import Row, pack, run_stage, unpack
from pipeline.face_columns import ALIGNMENT_COLUMNS, REJECT_COLUMNS, SOURCE_COLUMNS, TURN_COLUMN
from pipeline.images import Rejection, RejectReason

FACES = pa.schema(
    [
        *(SOURCE_COLUMNS | ALIGNMENT_COLUMNS).items(),
        ("pixels", pa.large_binary()),  # uint8 [h, w, 3]
        ("fields", pa.string()),  # JSON of what is carried over from the input
    ]
)
FACES_TURNED = pa.schema([*FACES, *TURN_COLUMN.items()])
REJECTS = pa.schema([*REJECT_COLUMNS.items()])


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


def face_row(key: str, uri: str, sha256: str, face: AlignedFace) -> dict[str, Any]:
    """One aligned face as a row of `FACES`."""
    facts = {name: _plain(value) for name, value in face.facts().items()}
    source = {"key": key, "source_uri": uri, "source_sha256": sha256}
    return {**source, **facts, "pixels": face.pixels.tobytes()}


def reject_row(
    key: str, uri: str, sha256: str, rejection: Rejection, face_index: int | None = None
) -> dict[str, Any]:
    """One rejected sample or face as a row of `REJECTS`."""
    return {
        "key": key,
        "face_index": face_index,
        "source_uri": uri,
        "source_sha256": sha256,
        "reason": rejection.reason.value,
        "detail": rejection.detail,
    }


def count_reasons(rejects: pa.Table) -> str:
    """JSON object of reject reason to count."""
    return json.dumps(Counter(rejects["reason"].to_pylist()), sort_keys=True)


def faces_schema(settings: AlignmentSettings) -> pa.Schema:
    """The columns of faces that are aligned with `settings`."""
    return FACES_TURNED if settings.tells_turns else FACES


class AlignStage:
    """Decodes and aligns a part's samples in a child process, which may die on one of them."""

    def __init__(self, settings: AlignmentSettings) -> None:
        wait_for_verdict()
        self.aligner = IsolatedAligner(settings)
        self.faces = faces_schema(settings)

    def __call__(self, row: Row) -> Row:
        return run_stage("align", self._work, row)

    def _outcomes(
        self, samples: list[dict[str, Any]]
    ) -> Iterator[tuple[dict[str, Any], Alignment | Rejection]]:
        readable = [sample["content"] for sample in samples if not sample["reject"]]
        results = iter(self.aligner.process(readable))
        for sample in samples:
            if sample["reject"]:
                yield sample, Rejection(RejectReason(sample["reject"]), sample["detail"])
            else:
                yield sample, next(results)

    def _work(self, row: Row) -> Row:
        samples = unpack(row["payload"]).to_pylist()
        faces: list[dict[str, Any]] = []
        rejects: list[dict[str, Any]] = []
        for sample, outcome in self._outcomes(samples):
            # Of a sample that was not read no hash is known.
            sha256 = "" if sample["reject"] else hashlib.sha256(sample["content"]).hexdigest()
            source = (sample["key"], sample["uri"], sha256)
            if isinstance(outcome, Rejection):
                rejects.append(reject_row(*source, outcome))
            else:
                row["icc_ignored"] += outcome.icc_ignored
                fields = {"fields": sample["fields"]}
                faces += [face_row(*source, face) | fields for face in outcome.faces]
                rejects += [
                    reject_row(*source, rejection, index)
                    for index, rejection in outcome.rejects.items()
                ]
        rejected = pa.Table.from_pylist(rejects, schema=REJECTS)
        row["payload"] = pack(pa.Table.from_pylist(faces, schema=self.faces))
        row["rejected"] = pack(rejected)
        row["faces"], row["rejects"] = len(faces), len(rejects)
        row["reasons"] = count_reasons(rejected)
        return row
