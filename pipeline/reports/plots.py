"""Plots of an evaluation with matplotlib (the extra `reports`), without a display."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pipeline.reports.coarse_to_fine import GROUPS, Change
from pipeline.reports.evaluation import Method, metrics_of
from pipeline.reports.faces import label
from pipeline.reports.statistics import Floats, Interval, interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colour-blind safe palette, dark colours first.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00")
_STEPS = ("#08306b", "#2171b5", "#4292c6", "#6baed6", "#9ecae1", "#c6dbef")  # dark is early
GREY, _SIZE, _LABEL_GAP = "#6e7278", 8, 0.055  # gap: fraction of the height


def quality_against_time(methods: Sequence[Method]) -> bytes:
    """Draw the paper's figure 4 as PNG: one panel per metric, one curve per method.

    Each step is a mark at the method's time until then, or its generator passes if a table has no
    seconds. Bars are 95 % intervals.
    """
    metrics = metrics_of(methods)
    costs, unit = _costs(methods)
    figure, panels = new_figure(1, len(metrics), width=4.4, height=3.6)
    for axes, metric in zip(panels, metrics, strict=True):
        _titled(axes, label(metric), unit)
        ends = []
        for number, (method, cost) in enumerate(zip(methods, costs, strict=True)):
            colour = COLOURS[number % len(COLOURS)]
            means = _curve(method, metric)
            points = [(x, m) for x, m in zip(cost, means, strict=True) if not math.isnan(m.mean)]
            if not points:
                continue
            xs = [x for x, _ in points]
            _line(axes, xs, [m for _, m in points], colour)
            ends.append((xs[-1], points[-1][1].mean, method.label, colour))
        _extend_for_labels(axes, [x for cost in costs for x in cost])
        _label_ends(axes, ends)
    return png_of(figure)


def change_in_steps(changes: Mapping[str, Change]) -> bytes:
    """Draw coarse to fine as PNG: one row per table, style layers and image frequencies."""
    figure, panels = new_figure(len(changes), 2, width=5.6, height=3.4)
    for row, (name, change) in enumerate(changes.items()):
        layers, bands = panels[2 * row], panels[2 * row + 1]
        _titled(layers, f"{name}: style layers", "row of the W+ code, coarse to fine")
        _by_step(layers, change.layers)
        _mark_groups(layers, len(change.layers[-1]) if change.layers else 0)
        _titled(bands, f"{name}: image frequencies", "cycles per image side, coarse to fine")
        _by_step(bands, [list(reversed(step)) for step in change.bands])
        names = list(reversed(change.band_names))
        bands.set_xticks(range(1, len(names) + 1), names)
        for axes in (layers, bands):
            axes.set_ylabel("mean absolute change", color=GREY, size=_SIZE)
    return png_of(figure)


def new_figure(
    rows: int, columns: int, *, width: float, height: float
) -> tuple[Figure, list[Axes]]:
    """Return a figure of panels of `width` and `height` inches, and its panels, row by row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def _titled(axes: Axes, title: str, below: str) -> None:
    axes.set_title(title, loc="left", size=10, parse_math=False)  # a label may have a $
    axes.set_xlabel(below, color=GREY, size=_SIZE)
    axes.tick_params(which="both", color=GREY, labelcolor=GREY, labelsize=_SIZE)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)


def png_of(figure: Figure) -> bytes:
    """Return a figure as PNG."""
    sink = io.BytesIO()
    # Without matplotlib's version, so that the same values give the same bytes.
    figure.savefig(sink, format="png", metadata={"Software": None})
    return sink.getvalue()


def _costs(methods: Sequence[Method]) -> tuple[list[Floats], str]:
    """Return every method's cost after each of its steps, and the unit."""
    if all(method.seconds is not None for method in methods):
        return [method.cost_until(method.seconds) for method in methods], "seconds per face"
    if not any(math.isnan(method.passes) for method in methods):
        return [method.cost_until(method.passes) for method in methods], "generator passes per face"
    return [np.arange(1.0, method.faces.max_steps + 1) for method in methods], "step"


def _curve(method: Method, metric: str) -> list[Interval]:
    values = method.faces.per_step.get(metric)
    if values is None:
        return [interval(np.empty(0))] * method.faces.max_steps
    return [interval(values[:, step]) for step in range(values.shape[1])]


def _line(axes: Axes, xs: Sequence[float], means: Sequence[Interval], colour: str) -> None:
    centre = [each.mean for each in means]
    width = [np.nan_to_num(each.half_width) for each in means]
    axes.errorbar(xs, centre, yerr=width, color=colour, elinewidth=0.8, fmt="none", alpha=0.45)
    axes.plot(xs, centre, color=colour, marker="o", markersize=3.5, linewidth=1.4)


def _extend_for_labels(axes: Axes, xs: Sequence[float]) -> None:
    """Extend the x axis to the right for labels; logarithmic over more than a decade."""
    positive = [x for x in xs if x > 0]
    low, high = min(positive, default=1.0), max(positive, default=1.0)
    if high > 10 * low:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        axes.set_xlim(low / 1.5, high * (high / low) ** 0.5)
    else:
        span = (high - low) or high
        axes.set_xlim(max(0.0, low - 0.1 * span), high + 0.5 * span)


def _label_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Write each curve's name right of its end (x, y, text, colour) without overlaps."""
    from matplotlib.patheffects import withStroke

    axes.get_ylim()  # updates the limits, which the transformation needs
    inside = axes.transData + axes.transAxes.inverted()
    placed = [
        (*inside.transform((x, y)), text, colour) for x, y, text, colour in ends if math.isfinite(x)
    ]
    height = -math.inf
    for x, y, text, colour in sorted(placed, key=lambda end: end[1]):
        height = max(y, height + _LABEL_GAP)
        axes.text(
            x + 0.02,
            height,
            text,
            color=colour,
            size=_SIZE,
            va="center",
            transform=axes.transAxes,
            parse_math=False,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],  # readable on a curve
        )


def _by_step(axes: Axes, steps: Sequence[Sequence[Interval]]) -> None:
    """Draw one line per step over numbered columns, on a logarithmic scale."""
    ends = []
    for number, step in enumerate(steps):
        if not step or not step[0].n:
            continue
        colour = _STEPS[min(number, len(_STEPS) - 1)]
        xs = np.arange(1.0, len(step) + 1)
        _line(axes, list(xs), step, colour)
        ends.append((xs[-1], step[-1].mean, f"step {number + 1}", colour))
    axes.set_yscale("log")
    if ends:
        axes.set_xlim(0.5, ends[0][0] * 1.18)
        _label_ends(axes, ends)


def _mark_groups(axes: Axes, n_styles: int) -> None:
    """Draw thin lines between coarse, medium and fine rows, with their names."""
    for name, rows in GROUPS.items():
        if rows.start and rows.start < n_styles:
            axes.axvline(rows.start + 0.5, color=GREY, linewidth=0.5, linestyle=":")
        if rows.start < n_styles:
            axes.text(
                rows.start + 0.6, 1.0, name, color=GREY, size=_SIZE, va="top",
                transform=axes.get_xaxis_transform(),
            )  # fmt: skip
