"""The paper's comparison: quality and cost of several tables over the same faces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.reports.faces import TRAITS, Faces, higher_is_better, label
from pipeline.reports.sheets import Cell, Sheet, number
from pipeline.reports.statistics import Floats, interval, terciles

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
