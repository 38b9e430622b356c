"""Stage 2, a pool of CPU actors: decode, detect, align."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from pipeline.alignment import AlignedFace, Alignment, AlignmentSettings, IsolatedAligner
from pipeline.engine.messages import FaceBatch, SampleBatch
from pipeline.engine.stages.base import Stage, StageResources
from pipeline.face_columns import (
    ALIGNMENT_COLUMNS,
    REJECT_COLUMNS,
    SOURCE_COLUMNS,
    TURN_COLUMN,
)
from pipeline.images import Rejection, RejectReason
from pipeline.storage import Store

FACES = pa.schema(
    [
        *(SOURCE_COLUMNS | ALIGNMENT_COLUMNS).items(),
        ("pixels", pa.large_binary()),  # uint8 [h, w, 3]
        ("fields", pa.string()),  # JSON of the columns that are copied from the input
    ]
)
_TARGET_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
REJECTS = pa.schema(REJECT_COLUMNS.items())


def face_row(key: str, uri: str, sha256: str, face: AlignedFace) -> dict[str, Any]:
    """Return an aligned face as a row of `FACES`."""
    facts = {
        name: value.tolist() if hasattr(value, "tolist") else value
        for name, value in face.facts().items()
    }
    source = {"key": key, "source_uri": uri, "source_sha256": sha256}
    return {**source, **facts, "pixels": face.pixels.tobytes()}


def reject_row(
    key: str, uri: str, sha256: str, rejection: Rejection, face_index: int | None = None
) -> dict[str, Any]:
    """Return a rejected sample or face as a row of `REJECTS`."""
    return {
        "key": key,
        "face_index": face_index,
        "source_uri": uri,
        "source_sha256": sha256,
        "reason": rejection.reason.value,
        "detail": rejection.detail,
    }


def count_reasons(rejects: Iterable[dict[str, Any]]) -> Counter[str]:
    """Return how often each reject reason occurs."""
    return Counter(reject["reason"] for reject in rejects)


def faces_schema(settings: AlignmentSettings, *, targets: bool = False) -> pa.Schema:
    """Return the schema of faces aligned with `settings`; with `targets` also of their targets."""
    schema = pa.schema([*FACES, *TURN_COLUMN.items()]) if settings.records_turns else FACES
    return schema.append(pa.field("target", pa.large_binary())) if targets else schema


def _target_name(targets: Store, key: str) -> str | None:
    """Return the object that belongs to `key`: of its name, or with another image extension."""
    path = PurePosixPath(key)
    if path.is_absolute() or ".." in path.parts:  # a key out of an archive: it may lead anywhere
        return None
    names = (key, *(str(path.with_suffix(suffix)) for suffix in _TARGET_SUFFIXES))
    return next((name for name in names if targets.exists(name)), None)


class Align(Stage):
    """Decodes and aligns the samples of a part in a child process, which an image may crash."""

    name = "align"
    takes = SampleBatch
    resources = StageResources("aligner", cpus=1.0)

    def __init__(self, settings: AlignmentSettings, target: str | None = None) -> None:
        self.settings = settings
        self.targets = Store(target) if target else None  # images to compare with, by key
        self.aligner: IsolatedAligner | None = None

    def setup(self) -> None:
        """Create the aligner; its child process starts with the first part."""
        self.aligner = self.aligner or IsolatedAligner(self.settings)

    def process(self, batch: SampleBatch) -> FaceBatch:
        """Return the faces of a part; each sample gives at least one face or reject."""
        faces: list[dict[str, Any]] = []
        rejects: list[dict[str, Any]] = []
        icc_ignored = 0
        for sample, aligned in self._align(batch.samples.to_pylist()):
            result, target = self._with_target(sample["key"], aligned)
            # A sample that could not be read has no hash.
            sha256 = "" if sample["reject"] else hashlib.sha256(sample["content"]).hexdigest()
            source = (sample["key"], sample["uri"], sha256)
            if isinstance(result, Rejection):
                rejects.append(reject_row(*source, result))
            else:
                icc_ignored += result.icc_ignored
                fields = {"fields": sample["fields"], **target}
                faces += [face_row(*source, face) | fields for face in result.faces]
                rejects += [
                    reject_row(*source, rejection, index)
                    for index, rejection in result.rejects.items()
                ]
        counts = replace(
            batch.counts,
            faces=len(faces),
            rejects=len(rejects),
            reasons=count_reasons(rejects),
            icc_ignored=icc_ignored,
        )
        schema = faces_schema(self.settings, targets=self.targets is not None)
        table = pa.Table.from_pylist(faces, schema=schema)
        rejected = pa.Table.from_pylist(rejects, schema=REJECTS)
        return FaceBatch(batch.shard, batch.part, counts, table, rejected, batch.initial_codes)

    def _with_target(
        self, key: str, result: Alignment | Rejection
    ) -> tuple[Alignment | Rejection, dict[str, bytes]]:
        """Return `result` and the column of its target; a reject where it has no usable one."""
        if self.targets is None or self.aligner is None or isinstance(result, Rejection):
            return result, {}
        name = _target_name(self.targets, key)
        if name is None:
            detail = f"there is no '{self.targets.uri(key)}', and none with another extension"
            return Rejection(RejectReason.NO_TARGET, detail), {}
        (target,) = self.aligner.process([self.targets.get(name)])
        if isinstance(target, Rejection):
            detail = f"'{self.targets.uri(name)}': {target}"
            return Rejection(RejectReason.NO_TARGET, detail), {}
        return result, {"target": target.faces[0].pixels.tobytes()}

    def _align(
        self, samples: list[dict[str, Any]]
    ) -> Iterator[tuple[dict[str, Any], Alignment | Rejection]]:
        if self.aligner is None:
            raise ValueError("setup() was not called")
        readable = [sample["content"] for sample in samples if not sample["reject"]]
        results = iter(self.aligner.process(readable))
        for sample in samples:
            if sample["reject"]:
                yield sample, Rejection(RejectReason(sample["reject"]), sample["detail"])
            else:
                yield sample, next(results)
