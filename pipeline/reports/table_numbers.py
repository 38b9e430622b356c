"""Aggregate the faces of a table for its report: distributions, curves and quality by traits.

DuckDB streams the rows and returns sums, counts and quantiles. Each function reads the selected
faces once, and only the columns that it needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline.metrics.registry import BY_NAME, METRICS, Metric
from pipeline.reports.faces import TRAITS, columns_of, compared_metrics
from pipeline.table.selection import Selection

# Up to this number of faces quantiles are exact: their values are held in memory.
EXACT_FACES = 1_000_000
BINS = 32
GROUPS = 8  # of faces with about equal numbers, by a trait; fewer for few faces
_FACES_PER_GROUP = 5
TRAIT_LABELS = {"face_px": "face size, px", "yaw": "|yaw|", "sharpness": "sharpness"}
TRAIT_TEXTS = {
    "face_px": "width of the face in the photo, in pixels",
    "yaw": "how far the head is turned aside; 0 looks at the camera",
    "sharpness": "sharpness of the aligned crop",
}
_LOW, _MIDDLE, _HIGH = 0.1, 0.5, 0.9


@dataclass(frozen=True)
class Distribution:
    """Histogram and statistics of one number of the faces.

    `counts` are of `BINS` bins of equal width from `start` to `end`; `below` and `above` count the
    faces outside. `missing` faces have no number, or one that is not finite.
    """

    name: str
    label: str
    text: str
    higher_is_better: bool | None  # None: not a measure of quality
    faces: int
    missing: int
    mean: float
    low: float  # 10th percentile
    median: float
    high: float  # 90th percentile
    start: float
    end: float
    counts: tuple[int, ...] = ()
    below: int = 0
    above: int = 0
    edges: tuple[float, ...] = ()  # that divide the faces into `GROUPS` groups


@dataclass(frozen=True)
class Point:
    """Mean and percentiles of a metric over the faces of one step or group."""

    x: float
    faces: int
    mean: float
    low: float
    median: float
    high: float


@dataclass(frozen=True)
class Curve:
    """A metric by step, or by a trait of the faces."""

    name: str
    label: str
    higher_is_better: bool
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Numbers:
    """Aggregates of the selected faces of a table.

    `by_trait` has for each trait the curves of the metrics. `best_steps` counts the faces by their
    best step.
    """

    faces: int
    exact: bool  # whether the quantiles are exact
    distributions: tuple[Distribution, ...]
    per_step: tuple[Curve, ...]
    best_steps: Mapping[int, int]
    by_trait: Mapping[str, tuple[Curve, ...]]

    def distribution(self, name: str) -> Distribution | None:
        """Return the distribution of a metric or trait; None if no face has it."""
        return next((each for each in self.distributions if each.name == name), None)


def table_numbers(selection: Selection) -> Numbers:
    """Return the aggregates of the selected faces."""
    faces = selection.count()
    exact = faces <= EXACT_FACES
    quantile = "quantile_cont" if exact else "approx_quantile"
    distributions = _distributions(selection, faces, quantile)
    per_step, best_steps = _per_step(selection, quantile)
    traits = [each for each in distributions if each.name in TRAITS and each.edges]
    by_trait = _by_trait(selection, traits, quantile)
    return Numbers(faces, exact, tuple(distributions), per_step, best_steps, by_trait)


def _expressions(selection: Selection) -> dict[str, str]:
    """Return the SQL expression of each metric and trait that the table has."""
    present = columns_of(selection.table)
    metrics = {metric.name: metric.name for metric in METRICS if metric.name in present}
    return metrics | {name: sql for name, sql in TRAITS.items() if name in present}


def _values(selection: Selection, expressions: Sequence[str]) -> str:
    """Return SQL of the finite values `v0`, `v1`, ... of the selected faces, others null."""
    return f"(SELECT {_finite(expressions)} FROM {selection.source})"


def _finite(expressions: Sequence[str]) -> str:
    """Return SQL of the values of `expressions` as `v0`, `v1`, ..., null where not finite."""
    return ", ".join(
        f"CASE WHEN isfinite(({sql})::DOUBLE) THEN ({sql})::DOUBLE END AS v{index}"
        for index, sql in enumerate(expressions)
    )


def _distributions(selection: Selection, faces: int, quantile: str) -> list[Distribution]:
    expressions = _expressions(selection)
    groups = min(GROUPS, faces // _FACES_PER_GROUP)
    cuts = [_LOW, _MIDDLE, _HIGH, *(group / groups for group in range(1, groups))]
    sums = ", ".join(
        f"count(v{i}) AS n{i}, avg(v{i}) AS a{i}, min(v{i}) AS l{i}, max(v{i}) AS h{i}, "
        f"{quantile}(v{i}, {cuts}) AS q{i}"
        for i in range(len(expressions))
    )
    source = _values(selection, list(expressions.values()))
    (row,) = selection.table.arrow(f"SELECT {sums} FROM {source}").to_pylist()
    measured = [
        _distribution(name, faces, {key: row[f"{key}{index}"] for key in "nalhq"})
        for index, name in enumerate(expressions)
        if row[f"n{index}"]
    ]
    counts = _histograms(selection, [expressions[each.name] for each in measured], measured)
    return [
        replace(each, below=below, counts=inside, above=above)
        for each, (below, inside, above) in zip(measured, counts, strict=True)
    ]


def _distribution(name: str, faces: int, row: Mapping[str, Any]) -> Distribution:
    low, median, high, *edges = row["q"]
    # A few values far away would leave all others in one bin.
    reach = 2 * (high - low)
    start, end = max(row["l"], low - reach), min(row["h"], high + reach)
    if not start < end:
        start, end = start - (abs(start) / 10 or 1), start + (abs(start) / 10 or 1)
    metric = BY_NAME.get(name)
    inner = sorted({edge for edge in edges if edge > row["l"]})
    return Distribution(
        name,
        metric.label if metric else TRAIT_LABELS[name],
        (metric.definition if metric else TRAIT_TEXTS[name]),
        metric.higher_is_better if metric and metric.of_best_step and metric.per_step else None,
        row["n"],
        faces - row["n"],
        row["a"],
        low,
        median,
        high,
        start,
        end,
        edges=tuple(inner) if name in TRAITS else (),
    )


def _histograms(
    selection: Selection, expressions: Sequence[str], of: Sequence[Distribution]
) -> list[tuple[int, tuple[int, ...], int]]:
    """Return for each distribution the counts below, in the bins, and above."""
    if not of:
        return []
    size = BINS + 2
    cells = ", ".join(_cell(f"v{i}", each, i * size) for i, each in enumerate(of))
    rows = selection.table.arrow(
        f"SELECT cell, count(*) AS n FROM (SELECT unnest([{cells}]) AS cell "
        f"FROM {_values(selection, expressions)}) WHERE cell IS NOT NULL GROUP BY cell"
    ).to_pylist()
    counts = {int(row["cell"]): int(row["n"]) for row in rows}
    return [
        (
            counts.get(i * size, 0),
            tuple(counts.get(i * size + 1 + bin_, 0) for bin_ in range(BINS)),
            counts.get(i * size + BINS + 1, 0),
        )
        for i in range(len(of))
    ]


def _cell(value: str, of: Distribution, first: int) -> str:
    """Return SQL of the number of a value's cell: `first` is below the bins, the last is above."""
    scale = BINS / (of.end - of.start)
    return (
        f"CASE WHEN {value} IS NULL THEN NULL WHEN {value} < {of.start!r} THEN {first} "
        f"WHEN {value} > {of.end!r} THEN {first + BINS + 1} "
        f"ELSE {first + 1} + least({BINS - 1}, floor(({value} - {of.start!r}) * {scale!r})::INT) "
        "END"
    )


def _statistics(columns: int, quantile: str) -> str:
    """Return SQL of the statistics of the values `v0`, `v1`, ..., as structs `s0`, `s1`, ...."""
    return ", ".join(
        f"{{'n': count(v{i}), 'a': avg(v{i}), 'q': {quantile}(v{i}, "
        f"[{_LOW}, {_MIDDLE}, {_HIGH}])}} AS s{i}"
        for i in range(columns)
    )


def _curve(metric: Metric, x: str, column: str, rows: Sequence[Mapping[str, Any]]) -> Curve:
    """Return the curve of the statistics in `column` over the column `x`."""
    points = tuple(
        Point(row[x], each["n"], each["a"], *each["q"])
        for row in rows
        if (each := row[column])["n"]
    )
    return Curve(metric.name, metric.label, metric.higher_is_better, points)


def _per_step(selection: Selection, quantile: str) -> tuple[tuple[Curve, ...], dict[int, int]]:
    """Return the metrics by step, and the number of faces by their best step.

    A face that stopped earlier repeats its last quality, as its code no longer changes. The
    residual is over the faces that took the step. Metrics of the best step alone are left out.
    """
    present = columns_of(selection.table)
    # Of a metric of the best step alone, each step would cover other faces.
    absent = selection.table.spec.best_alone
    metrics = [
        m
        for m in METRICS
        if m.per_step and f"{m.name}_per_step" in present and m.name not in absent
    ]
    longest = selection.table.arrow(f"SELECT max(steps) AS n FROM {selection.source}")
    steps = int(longest["n"][0].as_py() or 0)
    if not steps or not metrics:
        return (), {}
    lists = ", ".join(f"unnest({_resized(m, steps)}) AS u{i}" for i, m in enumerate(metrics))
    values = _finite([f"u{i}" for i in range(len(metrics))])
    rows = selection.table.arrow(
        f"SELECT step, count(*) FILTER (best_step = step) AS best, "
        f"{_statistics(len(metrics), quantile)} FROM (SELECT step, best_step, {values} "
        f"FROM (SELECT unnest(range(1, {steps + 1})) AS step, best_step, {lists} "
        f"FROM {selection.source})) GROUP BY step ORDER BY step"
    ).to_pylist()
    curves = (_curve(metric, "step", f"s{i}", rows) for i, metric in enumerate(metrics))
    best = {int(row["step"]): int(row["best"]) for row in rows}
    return tuple(curve for curve in curves if curve.points), best


def _resized(metric: Metric, steps: int) -> str:
    """Return SQL of a metric by step for all `steps`; quality keeps its last value."""
    column = f"{metric.name}_per_step"
    last = f", {column}[len({column})]" if metric.of_best_step else ""
    return f"list_resize({column}, {steps}{last})"


def _by_trait(
    selection: Selection, traits: Sequence[Distribution], quantile: str
) -> dict[str, tuple[Curve, ...]]:
    """Return for each trait the metrics of groups of about equal numbers of faces."""
    metrics = compared_metrics(selection.table)
    if not traits or not metrics:
        return {}
    expressions = [*metrics, *(TRAITS[trait.name] for trait in traits)]
    cells = ", ".join(
        f"{{'trait': {t}, 'x': v{len(metrics) + t}, 'group': "
        + " + ".join(f"(v{len(metrics) + t} >= {edge!r})::INT" for edge in trait.edges)
        + "}"
        for t, trait in enumerate(traits)
    )
    names = ", ".join(f"v{i}" for i in range(len(metrics)))
    rows = selection.table.arrow(
        f"SELECT cell.trait AS trait, cell.group AS group_, avg(cell.x) AS x, "
        f"{_statistics(len(metrics), quantile)} FROM (SELECT unnest([{cells}]) AS cell, {names} "
        f"FROM {_values(selection, expressions)}) WHERE cell.x IS NOT NULL "
        "GROUP BY ALL ORDER BY trait, group_"
    ).to_pylist()
    by_trait = {}
    for t, trait in enumerate(traits):
        groups = [row for row in rows if row["trait"] == t]
        curves = (_curve(BY_NAME[name], "x", f"s{i}", groups) for i, name in enumerate(metrics))
        by_trait[trait.name] = tuple(curve for curve in curves if curve.points)
    return by_trait
