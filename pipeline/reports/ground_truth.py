"""Distance to the true codes, which pairs of rendered images have."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.errors import InputError, RequestError
from pipeline.reports.faces import Faces, repeat_last
from pipeline.reports.statistics import Floats
from pipeline.storage import Shard, list_shards
from pipeline.storage.readers.pairs import CODE_SUFFIX, WANTED, code_members
from pipeline.table import Table
from pipeline.table.schema import codes_of, step_codes_of

METRIC = "w_plus_distance"
DEFINITION = (
    "root mean square over n_styles × 512 of the code's distance to the one that the image was "
    "rendered from (a W code stands for n_styles equal rows), lower is better"
)
_ROWS = 64
_STYLE_DIM = 512

Codes = Mapping[str, NDArray[np.float32]]  # key -> [512] or [n_styles, 512]


class _Distances(NamedTuple):
    """Distances of the faces of one batch that have a pair."""

    ids: pa.Array  # strings
    kept: Floats  # [n]
    per_step: pa.ListArray  # n lists, empty if steps are not stored


@dataclass
class GroundTruth:
    """Sums over the true codes and over the errors of each row of the inverted codes."""

    n: int = 0
    total: Floats = field(default_factory=lambda: np.zeros(_STYLE_DIM))
    squares: float = 0.0
    row_errors: Floats | float = 0.0  # [n_styles], summed squares

    def add(self, true: NDArray[np.float64], inverted: NDArray[np.float32]) -> None:
        """Add codes [n, n_styles, 512]."""
        self.n += len(true)
        self.total += true.mean(axis=1).sum(axis=0)
        self.squares += float(np.square(true).mean(axis=(1, 2)).sum())
        self.row_errors = self.row_errors + np.square(inverted - true).mean(axis=2).sum(axis=0)

    @property
    def spread(self) -> float:
        """Root mean square distance of the true codes to their mean."""
        mean = self.total / self.n
        return math.sqrt(max(0.0, self.squares / self.n - float(np.square(mean).mean())))

    @property
    def by_row(self) -> list[float]:
        """Root mean square distance of each row of the code, over all faces."""
        return [math.sqrt(error / self.n) for error in np.atleast_1d(self.row_errors)]


def with_distances(table: Table, faces: Faces, pairs: str) -> tuple[Faces, GroundTruth]:
    """Add the metric `w_plus_distance` to `faces` of `table`; also return the ground truth.

    `pairs` is the input that the table was made from: tars of `<key>.jpg` and `<key>.w.npy`
    ([512] or [n_styles, 512]). Faces and pairs are matched by shard and key; a face without a pair
    has no distance. Distances per step need a table with steps. Raises `RequestError` if no face
    has a pair, and what `code_members` raises.
    """
    shards = {shard.shard_id: shard for shard in list_shards(pairs)}
    batches, truth = [], GroundTruth()
    codes: tuple[str, Codes] = ("", {})
    for batch in _batches(table):
        for shard_id in pc.unique(batch["shard"]).to_pylist():
            if shard_id in shards:
                if shard_id != codes[0]:
                    codes = shard_id, read_codes(shards[shard_id])
                own = batch.filter(pc.equal(batch["shard"], shard_id))
                batches.append(_measure(own, codes[1], table.spec.columns.n_styles, truth))
    if not truth.n:
        raise RequestError(
            f"'{pairs}' has no pair (<key>{CODE_SUFFIX}) for any face of '{table.store.root}': "
            "give the input that the table was made from"
        )
    ids = pa.concat_arrays([batch.ids for batch in batches])
    lists = pa.concat_arrays([batch.per_step for batch in batches])
    rows = pc.index_in(faces.ids, value_set=ids)
    paired = rows.is_valid().to_numpy(zero_copy_only=False)
    chosen = rows.fill_null(0).to_numpy()
    kept = np.concatenate([batch.kept for batch in batches])[chosen]
    steps = repeat_last(lists, faces.max_steps)[chosen]
    kept, steps = np.where(paired, kept, np.nan), np.where(paired[:, None], steps, np.nan)
    return faces.with_metric(METRIC, kept, steps), truth


def read_codes(shard: Shard) -> Codes:
    """Read the true codes of a tar by key, float32. Raises what `code_members` raises."""
    if shard.kind != "tar":
        raise InputError(f"'{shard.uri}' is not a tar: {WANTED}")
    return dict(code_members(shard.uri))


def _batches(table: Table) -> Iterator[pa.RecordBatch]:
    """Return batches of ids and codes in the order of part files, grouped by shard."""
    stored = table.spec.columns.all_steps
    steps = ", w_plus_per_step" if stored else ""
    return table.batches(f"SELECT image_id, shard, key, w_plus{steps} FROM latents", _ROWS)


def _measure(batch: pa.RecordBatch, codes: Codes, n_styles: int, truth: GroundTruth) -> _Distances:
    """Measure the faces of one shard that have a pair in `codes`."""
    paired = [row for row, key in enumerate(batch["key"].to_pylist()) if key in codes]
    batch = batch.take(pa.array(paired, pa.int64()))
    kept = codes_of(batch["w_plus"])
    true = _true_codes(batch, codes, n_styles)
    truth.add(true, kept)
    offsets, distances = np.zeros(len(kept) + 1, np.int32), np.empty(0)
    if "w_plus_per_step" in batch.schema.names:
        steps = step_codes_of(batch["w_plus_per_step"])
        offsets = steps.offsets.astype(np.int32)
        distances = _distance(steps.codes, np.repeat(true, np.diff(offsets), axis=0))
    lists = pa.ListArray.from_arrays(pa.array(offsets), pa.array(distances))
    return _Distances(batch["image_id"], _distance(kept, true), lists)


def _true_codes(batch: pa.RecordBatch, codes: Codes, n_styles: int) -> NDArray[np.float64]:
    """Return the true code of each row, [n, n_styles, 512]."""
    all_true = np.empty((batch.num_rows, n_styles, _STYLE_DIM))
    for row, key in enumerate(batch["key"].to_pylist()):
        true = codes[key].reshape(-1, _STYLE_DIM)
        if len(true) not in (1, n_styles):
            raise RequestError(
                f"the true code of '{key}' has {len(true)} rows, but the table's have {n_styles}"
            )
        all_true[row] = true
    return all_true


def _distance(codes: NDArray[np.float32], true: NDArray[np.float64]) -> Floats:
    """Return the RMS over the last two axes of [n, n_styles, 512], [n]."""
    error: Floats = np.sqrt(np.square(codes - true).mean(axis=(-2, -1)))
    return error
