"""The paper's comparison: quality and cost of several tables over the same faces."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import RequestError
from pipeline.reports.faces import TRAITS, Faces, compared_metrics, higher_is_better, label
from pipeline.reports.sheets import Cell, Sheet, number
from pipeline.reports.statistics import Floats, interval, terciles
from pipeline.table import Table

_NOT_MEASURED = "not measured"
# These choose which faces there are, which is checked face by face.
_CHOICE = {"faces", "min_face_px", "max_pixels", "min_side", "detector_side", "min_score"}
_CHOICE |= {"turns", "search_pixels", "check_below"}
_LISTED = 5


def check_measured_alike(tables: Sequence[Table], labels: Sequence[str]) -> None:
    """Raise `RequestError` naming every metric that is defined in two ways.

    A metric that a table does not measure is missing there, not another one. The size of the
    crops is part of what pixel distances mean.
    """
    differences = [
        difference
        for table, label in zip(tables[1:], labels[1:], strict=True)
        for difference in _differences(tables[0], labels[0], table, label)
    ]
    if differences:
        raise RequestError(f"the tables are not measured alike: {'; '.join(differences)}")


def _differences(one: Table, its: str, other: Table, their: str) -> Iterator[str]:
    first, second = one.spec.metrics, other.spec.metrics
    for name in [*compared_metrics(one), "best_step"]:
        definitions = {
            m[name] for m in (first, second) if m.get(name, _NOT_MEASURED) != _NOT_MEASURED
        }
        if len(definitions) > 1:
            yield f"'{name}' is another metric in '{their}' than in '{its}' (see _table.json)"
    first, second = _crop_settings(one), _crop_settings(other)
    for name in sorted(first.keys() & second.keys()):
        if first[name] != second[name]:
            yield (
                f"alignment.{name} is {json.dumps(first[name])} in '{its}' and "
                f"{json.dumps(second[name])} in '{their}'"
            )


def _crop_settings(table: Table) -> dict[str, Any]:
    settings = table.spec.settings
    # A table of imported codes says how it cut the faces that it was measured on.
    alignment = settings.get("alignment") or settings.get("measured", {}).get("alignment")
    settings = alignment if isinstance(alignment, dict) else {}
    return {name: value for name, value in settings.items() if name not in _CHOICE}


def same_faces(faces: Sequence[Faces], labels: Sequence[str], *, common: bool) -> list[Faces]:
    """The tables' faces, all the same and in the same order.

    With `common` those that every table holds. Raises `RequestError` if the tables differ without
    it, if nothing is common, or if a face's id stands for different images.
    """
    shared = faces[0].ids
    for others in faces[1:]:
        shared = shared.filter(pc.is_in(shared, value_set=others.ids))
    if not common:
        _refuse_differences(faces, labels, shared)
    if not len(shared):
        raise RequestError(
            "the tables have no face to compare" + (" in common" if len(faces) > 1 else "")
        )
    chosen = [one.take(pc.index_in(shared, value_set=one.ids).to_numpy()) for one in faces]
    for one, name in zip(chosen[1:], labels[1:], strict=True):
        _refuse_other_images(chosen[0], one, labels[0], name)
    return chosen


def _refuse_differences(faces: Sequence[Faces], labels: Sequence[str], shared: pa.Array) -> None:
    count, first = 0, []
    for one, table in zip(faces, labels, strict=True):
        extra = one.ids.filter(pc.invert(pc.is_in(one.ids, value_set=shared)))
        count += len(extra)
        first += [f"'{name}' of '{table}'" for name in extra[:_LISTED].to_pylist()]
    if count:
        more = ", ..." if count > _LISTED else ""
        raise RequestError(
            f"the tables do not hold the same faces: {count} are not in all of them "
            f"({', '.join(first[:_LISTED])}{more}); --common compares the {len(shared)} that are"
        )


def _refuse_other_images(one: Faces, other: Faces, its: str, their: str) -> None:
    differ = pc.not_equal(one.sources, other.sources)  # null, no difference, where one is unknown
    rows = np.flatnonzero(differ.fill_null(False).to_numpy(zero_copy_only=False))
    if len(rows):
        named = ", ".join(
            f"'{name}'" for name in one.ids.take(pa.array(rows[:_LISTED])).to_pylist()
        )
        raise RequestError(
            f"{len(rows)} faces of the same id come from other images in '{their}' than in "
            f"'{its}': {named}"
        )


_TRAIT_UNITS = {
    "face_px": "side of the face in pixels",
    "yaw": "|yaw|, 0 is frontal, 1 a profile",
    "sharpness": "variance of the crop's Laplacian",
}


@dataclass(frozen=True)
class Method:
    """One table of a comparison; `seconds` a face are of the method alone, over all its runs."""

    label: str
    faces: Faces
    seconds: float | None

    @property
    def passes(self) -> float:
        """Images that the generator made for a face, the mean; NaN if no face has the number."""
        return interval(self.faces.generator_passes).mean

    def cost_until(self, total: float | None) -> Floats:
        """Of a cost `total` of the whole inversion what is spent after each step, [most steps].

        All steps cost the same; faces that stopped earlier spend nothing on later ones.
        """
        steps = self.faces.steps[~np.isnan(self.faces.steps)]
        made = [np.minimum(step, steps).mean() for step in range(1, self.faces.most_steps + 1)]
        share = np.array(made) / steps.mean() if made else np.empty(0)
        return share * (np.nan if total is None else total)


def comparison(methods: Sequence[Method]) -> Sheet:
    """A row a method: the codes that its table holds."""
    metrics = metrics_of(methods)
    rows = []
    for method in methods:
        means = [_mean(method.faces.quality, metric) for metric in metrics]
        made = [interval(method.faces.steps), interval(method.faces.generator_passes)]
        rows.append([method.label, *means, method.seconds, *made])
    return Sheet(
        "comparison",
        "Comparison",
        ["method", *map(label, metrics), "seconds a face", "steps", "generator passes"],
        rows,
        f"Means over {len(methods[0].faces):,} faces ± half the 95 % confidence interval "
        "(Student's t); n where some were not measured. Quality is that of the code in the table, "
        "the best step's. Seconds are known of whole runs only, not of each face: they have no "
        "interval.",
    )


def per_step(methods: Sequence[Method]) -> Sheet:
    """A row a method and step."""
    metrics = metrics_of(methods)
    rows: list[list[Cell]] = []
    for method in methods:
        seconds = method.cost_until(method.seconds)
        passes = method.cost_until(method.passes)
        for step in range(method.faces.most_steps):
            means = [_mean(_step(method.faces, step), metric) for metric in metrics]
            rows.append([method.label, step + 1, *means, float(seconds[step]), float(passes[step])])
    return Sheet(
        "per_step",
        "Per step",
        ["method", "step", *map(label, metrics), "seconds until then", "generator passes"],
        rows,
    )


def paired(methods: Sequence[Method]) -> Sheet:
    """Each method against the first one, face by face."""
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
    return Sheet(
        "paired",
        f"Difference to {first.label}, face by face",
        header,
        rows,
        "Each method's value minus that of the first one on the same face, over the faces where "
        "both are measured. As the faces are the same, this interval says whether two methods "
        "differ; those of the means above are wider, since faces differ more than methods do.",
    )


def per_bucket(methods: Sequence[Method]) -> Sheet:
    """Thirds of the faces by size, turn of the head and sharpness; a row a third and method."""
    metrics = metrics_of(methods)
    rows: list[list[Cell]] = []
    for trait in TRAITS:
        for name, members in _thirds(methods, trait):
            for method in methods:
                chosen = {m: values[members] for m, values in method.faces.quality.items()}
                means = [_mean(chosen, metric) for metric in metrics]
                rows.append([trait, name, len(members), method.label, *means])
    units = "; ".join(f"{name}: {unit}" for name, unit in _TRAIT_UNITS.items())
    return Sheet(
        "per_bucket",
        "Per quality bucket",
        ["by", "range", "faces", "method", *map(label, metrics)],
        rows,
        f"Thirds of the faces ({units}).",
    )


def notes(methods: Sequence[Method]) -> list[str]:
    """What a reader of the sheets must know: unmeasured faces, carried values, missing costs."""
    return [note for method in methods for note in _notes(method)]


def metrics_of(methods: Sequence[Method]) -> list[str]:
    """The metrics of which any method has a number, in the order of a report's columns."""
    names = dict.fromkeys(name for method in methods for name in method.faces.quality)
    known = [
        name
        for name in names
        if any(interval(m.faces.quality[name]).n for m in methods if name in m.faces.quality)
    ]
    return known


def _notes(method: Method) -> Iterator[str]:
    faces = method.faces
    for metric, values in faces.quality.items():
        measured = interval(values).n
        if 0 < measured < len(faces):
            yield f"{method.label}: {label(metric)[:-2]} over {measured:,} of {len(faces):,} faces."
    if len(np.unique(faces.steps)) > 1:
        yield (
            f"{method.label}: faces made {int(np.nanmin(faces.steps))} to "
            f"{faces.most_steps} steps; in the means of later steps each that had stopped keeps "
            "its last value."
        )
    if faces.refined:
        yield (
            f"{method.label}: started from codes of another table, whose cost is not counted in "
            "seconds, steps and generator passes."
        )
    if method.seconds is None:
        yield f"{method.label}: no run of the table says how long its inversions took."


def _difference(one: Faces, other: Faces, metric: str) -> list[Cell]:
    """Mean difference, and the share of faces on which `other` is better."""
    if metric not in one.quality or metric not in other.quality:
        return [None, None]
    change = other.quality[metric] - one.quality[metric]
    known = change[~np.isnan(change)]
    better = known > 0 if higher_is_better(metric) else known < 0
    return [interval(change), f"{better.mean():.0%}" if len(known) else None]


def _thirds(methods: Sequence[Method], trait: str) -> Iterator[tuple[str, Any]]:
    """Name and rows [m] of each third that is not empty, by the first table that has the trait."""
    known = (method.faces.traits[trait] for method in methods)
    values = next((each for each in known if not np.isnan(each).all()), None)
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


def _step(faces: Faces, step: int) -> dict[str, Floats]:
    return {metric: values[:, step] for metric, values in faces.per_step.items()}


def _mean(values: Any, metric: str) -> Cell:
    return interval(values[metric]) if metric in values else None
