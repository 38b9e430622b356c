"""Read the scalars of a table's faces for an evaluation, in the order of their ids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import pyarrow as pa

from pipeline.metrics.registry import BY_NAME, METRICS, QUALITY
from pipeline.reports.statistics import Floats
from pipeline.table import Table

_SUFFIX = "_per_step"
_LABELS = {"w_plus_distance": "W+ distance"} | {each.name: each.label for each in METRICS}
# SQL expressions of traits that make a face difficult.
TRAITS = {"face_px": "face_px", "yaw": "abs(yaw)", "sharpness": "sharpness"}


@dataclass(frozen=True)
class Faces:
    """Faces of one table; every array has one entry per face, NaN for missing values.

    `per_step` has one column for each step up to the maximum. A face that stopped earlier repeats
    its last value, as its code no longer changes.
    """

    ids: pa.Array  # strings
    sources: pa.Array  # SHA-256 of the images
    methods: tuple[str, ...]  # of the table
    refined: bool  # faces started from codes of another table
    steps: Floats  # [n]
    generator_passes: Floats  # [n]
    traits: Mapping[str, Floats]  # name in TRAITS -> [n]
    quality: Mapping[str, Floats]  # metric -> [n], of the code in the table
    per_step: Mapping[str, Floats]  # metric -> [n, max_steps]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def max_steps(self) -> int:
        """Maximum number of steps of a face."""
        return int(np.nanmax(self.steps, initial=0))

    def take(self, rows: np.ndarray) -> Faces:
        """Return the faces at the indices `rows`."""
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


def read_face_scalars(table: Table) -> Faces:
    """Read the scalars of all faces, but no codes and no pictures."""
    # Identity first, then distances, as in the paper's tables.
    metrics = sorted(compared_metrics(table), key=lambda name: name != "id_similarity")
    columns = [
        "image_id",
        "source_sha256",
        "steps",
        "generator_passes",
        *(f"{expression} AS {name}" for name, expression in TRAITS.items()),
        *(column for metric in metrics for column in (metric, metric + _SUFFIX)),
    ]
    rows = table.arrow(f"SELECT {', '.join(columns)} FROM latents ORDER BY image_id")
    methods = table.arrow(
        "SELECT method, count(refined_from) AS refined FROM latents GROUP BY method ORDER BY method"
    )
    steps = _reals(rows, "steps")
    max_steps = int(np.nanmax(steps, initial=0))
    per_step = {
        metric: repeat_last(rows[metric + _SUFFIX].combine_chunks(), max_steps)
        for metric in metrics
    }
    for metric in table.spec.best_alone:
        # Means over the faces whose best step this is would say nothing about the step.
        per_step[metric] = np.full((len(steps), max_steps), np.nan)
    return Faces(
        ids=rows["image_id"].combine_chunks(),
        sources=rows["source_sha256"].combine_chunks(),
        methods=tuple(name for name in methods["method"].to_pylist() if name),
        refined=any(methods["refined"].to_pylist()),
        steps=steps,
        generator_passes=_reals(rows, "generator_passes"),
        traits={name: _reals(rows, name) for name in TRAITS},
        quality={metric: _reals(rows, metric) for metric in metrics},
        per_step=per_step,
    )


def compared_metrics(table: Table) -> list[str]:
    """Return the metrics of quality that the table has, without PSNR, a function of L2."""
    present = columns_of(table)
    return [name for name in QUALITY if name != "psnr" and name in present]


def columns_of(table: Table) -> set[str]:
    """Return the names of the columns that queries of the table's faces can use."""
    return set(table.arrow("SELECT * FROM latents LIMIT 0").column_names)


def label(metric: str) -> str:
    """Return the metric's name for a header, with an arrow in the direction of better values."""
    return f"{_LABELS.get(metric, metric)} {'↑' if higher_is_better(metric) else '↓'}"


def higher_is_better(metric: str) -> bool:
    """Return whether the metric is a similarity; the distance to true codes is in no registry."""
    return metric in BY_NAME and BY_NAME[metric].higher_is_better


def repeat_last(lists: pa.ListArray, width: int) -> Floats:
    """Convert lists of numbers to [n, width]; each repeats its last number after its end."""
    numbers = np.asarray(lists.values.to_numpy(zero_copy_only=False), np.float64)
    offsets = lists.offsets.to_numpy()
    begin, lengths = offsets[:-1, None], np.diff(offsets)[:, None]
    steps = np.minimum(np.arange(width), np.maximum(lengths - 1, 0))
    padded = np.append(numbers, np.nan)  # for an empty list at the end
    return np.where(lengths > 0, padded[begin + steps], np.nan)


def _reals(rows: pa.Table, name: str) -> Floats:
    return cast(Floats, rows[name].cast(pa.float64()).to_numpy())
