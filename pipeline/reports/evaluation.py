"""Compare quality and cost of several tables over the same faces, as in the paper."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.choices import EARLIER_SEARCH
from pipeline.errors import RequestError
from pipeline.reports.faces import TRAITS, Faces, compared_metrics, higher_is_better, label
from pipeline.reports.sheets import Cell, ReportTable, number
from pipeline.reports.statistics import Floats, interval, terciles
from pipeline.table import Table

_NOT_MEASURED = "not measured"
# These settings decide which faces are found; the faces themselves are compared one by one.
_DETECTION_SETTINGS = {
    *("faces", "min_face_px", "max_pixels", "min_side", "detector_side", "min_score"),
    *EARLIER_SEARCH,
}
_LISTED = 5


def check_same_definitions(tables: Sequence[Table], labels: Sequence[str]) -> None:
    """Raise `RequestError` that names every metric with different definitions.

    A metric that a table does not measure is not compared. The crops' settings are compared too,
    as pixel distances depend on them.
    """
    differences = [
        difference
        for table, label in zip(tables[1:], labels[1:], strict=True)
        for difference in _differences(tables[0], labels[0], table, label)
    ]
    if differences:
        raise RequestError(f"the tables are measured in different ways: {'; '.join(differences)}")


def _differences(
    table: Table, name_of_table: str, other: Table, name_of_other: str
) -> Iterator[str]:
    first, second = table.spec.metrics, other.spec.metrics
    for name in [*compared_metrics(table), "best_step"]:
        definitions = {
            m[name] for m in (first, second) if m.get(name, _NOT_MEASURED) != _NOT_MEASURED
        }
        if len(definitions) > 1:
            yield (
                f"'{name}' is defined differently in '{name_of_other}' and '{name_of_table}' "
                "(see _table.json)"
            )
    first, second = _crop_settings(table), _crop_settings(other)
    for name in sorted(first.keys() & second.keys()):
        if first[name] != second[name]:
            yield (
                f"alignment.{name} is {json.dumps(first[name])} in '{name_of_table}' and "
                f"{json.dumps(second[name])} in '{name_of_other}'"
            )


def _crop_settings(table: Table) -> dict[str, Any]:
    settings = table.spec.settings
    # An imported table has the crop settings of its measuring.
    alignment = settings.get("alignment") or settings.get("measured", {}).get("alignment")
    settings = alignment if isinstance(alignment, dict) else {}
    return {name: value for name, value in settings.items() if name not in _DETECTION_SETTINGS}


def same_faces(faces: Sequence[Faces], labels: Sequence[str], *, common: bool) -> list[Faces]:
    """Return the tables' faces, the same for all tables and in the same order.

    With `common`, only the faces that all tables have. Raises `RequestError` if the tables have
    different faces without it, if no face is common, or if one id is of different images.
    """
    shared = faces[0].ids
    for others in faces[1:]:
        shared = shared.filter(pc.is_in(shared, value_set=others.ids))
    if not common:
        _refuse_differences(faces, labels, shared)
    if not len(shared):
        raise RequestError(
            "the tables have no faces to compare" + (" in common" if len(faces) > 1 else "")
        )
    chosen = [each.take(pc.index_in(shared, value_set=each.ids).to_numpy()) for each in faces]
    for other, name in zip(chosen[1:], labels[1:], strict=True):
        _refuse_other_images(chosen[0], other, labels[0], name)
    return chosen


def _refuse_differences(faces: Sequence[Faces], labels: Sequence[str], shared: pa.Array) -> None:
    count, first = 0, []
    for each, table in zip(faces, labels, strict=True):
        extra = each.ids.filter(pc.invert(pc.is_in(each.ids, value_set=shared)))
        count += len(extra)
        first += [f"'{name}' of '{table}'" for name in extra[:_LISTED].to_pylist()]
    if count:
        more = ", ..." if count > _LISTED else ""
        raise RequestError(
            f"the tables do not have the same faces: {count} are not in all tables "
            f"({', '.join(first[:_LISTED])}{more}); --common compares the {len(shared)} that are"
        )


def _refuse_other_images(faces: Faces, other: Faces, label: str, other_label: str) -> None:
    differ = pc.not_equal(faces.sources, other.sources)  # null, not different, if one is null
    rows = np.flatnonzero(differ.fill_null(False).to_numpy(zero_copy_only=False))
    if len(rows):
        named = ", ".join(
            f"'{name}'" for name in faces.ids.take(pa.array(rows[:_LISTED])).to_pylist()
        )
        raise RequestError(
            f"{len(rows)} faces with the same id are from different images in '{other_label}' and "
            f"'{label}': {named}"
        )


_TRAIT_UNITS = {
    "face_px": "side of the face in pixels",
    "yaw": "|yaw|, 0 is frontal, 1 a profile",
    "sharpness": "variance of the crop's Laplacian",
}


@dataclass(frozen=True)
class Method:
    """Table of a comparison; `seconds` per face of the inversions alone, over all runs."""

    label: str
    faces: Faces
    seconds: float | None

    @property
    def passes(self) -> float:
        """Mean number of images that the generator rendered per face; NaN if unknown."""
        return interval(self.faces.generator_passes).mean

    def cost_until(self, total: float | None) -> Floats:
        """Return the part of the cost `total` of an inversion spent after each step, [max_steps].

        All steps cost the same; faces that stopped earlier spend nothing on later steps.
        """
        steps = self.faces.steps[~np.isnan(self.faces.steps)]
        done = [np.minimum(step, steps).mean() for step in range(1, self.faces.max_steps + 1)]
        share = np.array(done) / steps.mean() if done else np.empty(0)
        return share * (np.nan if total is None else total)


def comparison(methods: Sequence[Method]) -> ReportTable:
    """Return the comparison of the tables' codes, one row per method."""
    metrics = metrics_of(methods)
    rows = []
    for method in methods:
        means = [_mean(method.faces.quality, metric) for metric in metrics]
        counts = [interval(method.faces.steps), interval(method.faces.generator_passes)]
        rows.append([method.label, *means, method.seconds, *counts])
    return ReportTable(
        "comparison",
        "Comparison",
        ["method", *map(label, metrics), "seconds a face", "steps", "generator passes"],
        rows,
        f"Means over {len(methods[0].faces):,} faces ± half the 95 % confidence interval "
        "(Student's t), with n where some faces were not measured. Quality is that of the code in "
        "the table, the best step's. Seconds are measured per run, not per face, and have no "
        "interval.",
    )


def per_step(methods: Sequence[Method]) -> ReportTable:
    """Return quality and cost after each step, one row per method and step."""
    metrics = metrics_of(methods)
    rows: list[list[Cell]] = []
    for method in methods:
        seconds = method.cost_until(method.seconds)
        passes = method.cost_until(method.passes)
        for step in range(method.faces.max_steps):
            values = {name: steps[:, step] for name, steps in method.faces.per_step.items()}
            means = [_mean(values, metric) for metric in metrics]
            rows.append([method.label, step + 1, *means, float(seconds[step]), float(passes[step])])
    return ReportTable(
        "per_step",
        "Per step",
        ["method", "step", *map(label, metrics), "seconds until then", "generator passes"],
        rows,
    )


def paired(methods: Sequence[Method]) -> ReportTable:
    """Return the paired differences of each method to the first one."""
    first, metrics = methods[0], metrics_of(methods)
    rows = []
    for method in methods[1:]:
        cells: list[Cell] = [method.label]
        for metric in metrics:
            cells += _difference(first.faces, method.faces, metric)
        rows.append(cells)
    header = ["method"]
    for metric in metrics:
        header += [f"{label(metric)[:-2]} difference", f"{label(metric)[:-2]} better on"]
    return ReportTable(
        "paired",
        f"Difference to {first.label}, face by face",
        header,
        rows,
        "Each method's value minus the first method's value on the same face, over the faces where "
        "both are measured. These intervals show whether two methods differ; those of the means "
        "above are wider, because faces differ more than methods.",
    )


def per_bucket(methods: Sequence[Method]) -> ReportTable:
    """Return quality by thirds of face size, yaw and sharpness, one row per third and method."""
    metrics = metrics_of(methods)
    rows: list[list[Cell]] = []
    for trait in TRAITS:
        for name, members in _thirds(methods, trait):
            for method in methods:
                chosen = {m: values[members] for m, values in method.faces.quality.items()}
                means = [_mean(chosen, metric) for metric in metrics]
                rows.append([trait, name, len(members), method.label, *means])
    units = "; ".join(f"{name}: {unit}" for name, unit in _TRAIT_UNITS.items())
    return ReportTable(
        "per_bucket",
        "Per quality bucket",
        ["by", "range", "faces", "method", *map(label, metrics)],
        rows,
        f"Thirds of the faces ({units}).",
    )


def metrics_of(methods: Sequence[Method]) -> list[str]:
    """Return the metrics measured in any table, in the order of the report's columns."""
    names = dict.fromkeys(name for method in methods for name in method.faces.quality)
    return [
        name
        for name in names
        if any(interval(m.faces.quality[name]).n for m in methods if name in m.faces.quality)
    ]


def notes(method: Method) -> Iterator[str]:
    """Yield notes for the report: unmeasured faces, repeated values, missing costs."""
    faces = method.faces
    for metric, values in faces.quality.items():
        measured = interval(values).n
        if 0 < measured < len(faces):
            yield f"{method.label}: {label(metric)[:-2]} over {measured:,} of {len(faces):,} faces."
    if len(np.unique(faces.steps)) > 1:
        yield (
            f"{method.label}: faces have {int(np.nanmin(faces.steps))} to {faces.max_steps} steps; "
            "in the means of later steps a face that has stopped keeps its last value."
        )
    if faces.refined:
        yield (
            f"{method.label}: started from codes of another table, whose cost is not included in "
            "seconds, steps and generator passes."
        )
    if method.seconds is None:
        yield f"{method.label}: no run of the table has the time of its inversions."


def _difference(faces: Faces, other: Faces, metric: str) -> list[Cell]:
    """Return the mean difference and the fraction of faces on which `other` is better."""
    if metric not in faces.quality or metric not in other.quality:
        return [None, None]
    change = other.quality[metric] - faces.quality[metric]
    measured = change[~np.isnan(change)]
    better = measured > 0 if higher_is_better(metric) else measured < 0
    return [interval(change), f"{better.mean():.0%}" if len(measured) else None]


def _thirds(methods: Sequence[Method], trait: str) -> Iterator[tuple[str, Any]]:
    """Yield name and rows [m] of each non-empty third, from the first table with the trait."""
    candidates = (method.faces.traits[trait] for method in methods)
    values = next((each for each in candidates if not np.isnan(each).all()), None)
    if values is None:
        return
    thirds = terciles(values)
    for third in range(3):
        rows = np.flatnonzero(thirds == third)
        if len(rows):
            low, high = values[rows].min(), values[rows].max()
            yield f"{number(low)} to {number(high)}", rows
    unknown = np.flatnonzero(np.isnan(values))
    if len(unknown):
        yield "not known", unknown


def _mean(values: Any, metric: str) -> Cell:
    return interval(values[metric]) if metric in values else None
