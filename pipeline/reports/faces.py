"""What an evaluation knows of a table: a few numbers a face, in the order of the faces' ids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import pyarrow as pa

from pipeline.metrics.registry import METRICS
from pipeline.reports.statistics import Floats
from pipeline.table import Table

# PSNR says of one face what L2 says, and the residual is no quality.
_NOT_COMPARED = {"psnr", "residual_norm"}
_SUFFIX = "_per_step"
# As the paper's tables have them: identity first, then distances.
_ORDER = ("id_similarity", "l2", "lpips")
_LABELS = {"w_plus_distance": "W+ distance"} | {each.name: each.label for each in METRICS}
# What makes a face hard; of the yaw, how far the head is turned to either side.
TRAITS = {"face_px": "face_px", "yaw": "abs(yaw)", "sharpness": "sharpness"}


@dataclass(frozen=True)
class Faces:
    """Faces of one table; every array has one entry a face, NaN where there is no number.

    `per_step` has a column for each step of the face with the most of them: a face that stopped
    earlier keeps its last value, since that is the code that it was left with.
    """

    ids: pa.Array  # strings
    sources: pa.Array  # SHA-256 of the images
    methods: tuple[str, ...]  # of the table
    refined: bool  # whether faces of the table started from codes of another one
    steps: Floats  # [n]
    generator_passes: Floats  # [n]
    traits: Mapping[str, Floats]  # name in TRAITS -> [n]
    quality: Mapping[str, Floats]  # metric -> [n], of the code in the table
    per_step: Mapping[str, Floats]  # metric -> [n, most steps]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def most_steps(self) -> int:
        """Steps of the face that made the most."""
        return int(np.nanmax(self.steps, initial=0))

    def take(self, rows: np.ndarray) -> Faces:
        """The faces at the indices `rows`."""
        return replace(
            self,
            ids=self.ids.take(pa.array(rows)),
            sources=self.sources.take(pa.array(rows)),
            steps=self.steps[rows],
            generator_passes=self.generator_passes[rows],
            traits={name: values[rows] for name, values in self.traits.items()},
            quality={name: values[rows] for name, values in self.quality.items()},
            per_step={name: values[rows] for name, values in self.per_step.items()},
        )

    def with_metric(self, name: str, quality: Floats, per_step: Floats) -> Faces:
        """These faces with one more metric, [n] and [n, most steps]."""
        return replace(
            self,
            quality={**self.quality, name: quality},
            per_step={**self.per_step, name: per_step},
        )


def read_face_scalars(table: Table) -> Faces:
    """The scalars of all faces; no code and no picture is read."""
    metrics = compared_metrics(table)
    wanted = [
        "image_id",
        "source_sha256",
        "steps",
        "generator_passes",
        *(f"{expression} AS {name}" for name, expression in TRAITS.items()),
        *(column for metric in metrics for column in (metric, metric + _SUFFIX)),
    ]
    rows = table.arrow(f"SELECT {', '.join(wanted)} FROM latents ORDER BY image_id")
    methods = table.arrow(
        "SELECT method, count(refined_from) AS refined FROM latents GROUP BY method ORDER BY method"
    )
    steps = _reals(rows, "steps")
    most = int(np.nanmax(steps, initial=0))
    return Faces(
        ids=_whole(rows, "image_id"),
        sources=_whole(rows, "source_sha256"),
        methods=tuple(name for name in methods["method"].to_pylist() if name),
        refined=any(methods["refined"].to_pylist()),
        steps=steps,
        generator_passes=_reals(rows, "generator_passes"),
        traits={name: _reals(rows, name) for name in TRAITS},
        quality={metric: _reals(rows, metric) for metric in metrics},
        per_step={metric: last_kept(_whole(rows, metric + _SUFFIX), most) for metric in metrics},
    )


def compared_metrics(table: Table) -> list[str]:
    """The metrics that the table has of the kept code and of each step."""
    names = set(table.arrow("SELECT * FROM latents LIMIT 0").column_names)
    found = {
        name.removesuffix(_SUFFIX)
        for name in names
        if name.endswith(_SUFFIX) and name.removesuffix(_SUFFIX) in names
    }
    found -= {*_NOT_COMPARED, "w_plus"}
    return sorted(found, key=lambda name: (_rank(name), name))


def label(metric: str) -> str:
    """The metric's name for a header, with the direction in which it is better."""
    return f"{_LABELS.get(metric, metric)} {'↑' if higher_is_better(metric) else '↓'}"


def higher_is_better(metric: str) -> bool:
    """Whether the metric is a similarity; all others are distances."""
    return metric.endswith("similarity")


def last_kept(lists: pa.ListArray, width: int) -> Floats:
    """Lists of numbers as [n, width]: behind its end each goes on with its last number."""
    numbers = np.asarray(lists.values.to_numpy(zero_copy_only=False), np.float64)
    offsets = lists.offsets.to_numpy()
    begin, lengths = offsets[:-1, None], np.diff(offsets)[:, None]
    steps = np.minimum(np.arange(width), np.maximum(lengths - 1, 0))
    padded = np.append(numbers, np.nan)  # what an empty list at the very end points at
    return np.where(lengths > 0, padded[begin + steps], np.nan)


def _rank(metric: str) -> int:
    return _ORDER.index(metric) if metric in _ORDER else len(_ORDER)


def _whole(rows: pa.Table, name: str) -> pa.Array:
    column = rows[name].combine_chunks()
    # Newer versions of Arrow give a chunked array of no chunks for no rows.
    return pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column


def _reals(rows: pa.Table, name: str) -> Floats:
    numbers = _whole(rows, name).cast(pa.float64()).to_numpy(zero_copy_only=False)
    return cast(Floats, np.asarray(numbers, np.float64))
