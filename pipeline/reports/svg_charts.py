"""Draw charts as SVG elements for an HTML page; colours come from the page's CSS classes.

Every text is escaped. A chart is an image with a text alternative, and its marks have tooltips.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

from pipeline.reports.table_numbers import Curve, Distribution

WIDTH = 340
MAP_WIDTH, MAP_HEIGHT = 720, 480
COLOURS = 7  # of the map
_HISTOGRAM_HEIGHT, _CURVE_HEIGHT = 150, 180
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 14, 34
_MOST_STEPS = 4  # between the ticks of an axis


def number(value: float | None, decimals: int | None = None) -> str:
    """Return a number with thousands separators; by default with three significant digits."""
    if value is None or not math.isfinite(value):
        return "–"
    if decimals is None:
        decimals = decimals_of(value)
    text = f"{value:,.{decimals}f}"
    return text.replace("-", "−") if float(text.replace(",", "")) else text.lstrip("-")


def decimals_of(value: float) -> int:
    """Return the number of decimals that shows three significant digits of `value`."""
    if not value or not math.isfinite(value):
        return 0
    return max(0, min(6, 2 - math.floor(math.log10(abs(value)))))


def ticks(low: float, high: float) -> list[float]:
    """Return up to five round numbers between `low` and `high`, 1, 2 or 5 apart."""
    span = high - low
    if not (span > 0 and math.isfinite(span)):
        return [low]
    power = 10.0 ** math.floor(math.log10(span / _MOST_STEPS))
    step = next(power * unit for unit in (1, 2, 5, 10) if span / (power * unit) <= _MOST_STEPS)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def _tick_labels(values: Sequence[float]) -> list[str]:
    """Return the labels of ticks, all with the decimals that tell them apart."""
    gap = min((b - a for a, b in itertools.pairwise(values)), default=0.0)
    decimals = max(0, -math.floor(math.log10(gap) + 1e-9)) if gap > 0 else 2
    return [number(value, decimals) for value in values]


def _element(name: str, content: str = "", **attributes: object) -> Markup:
    """Return an element; `content` is escaped unless it is `Markup`, `_` in names becomes `-`."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_short(value))}"'
        for key, value in attributes.items()
    )
    return Markup(f"<{name}{given}>{escape(content)}</{name}>")


def _short(value: object) -> object:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value


def _figure(parts: Sequence[Markup], label: str, width: int, height: int) -> Markup:
    return _element(
        "svg",
        Markup("").join(parts),
        class_="chart",
        viewBox=f"0 0 {width} {height}",
        role="img",
        aria_label=label,
    )


def histogram(each: Distribution) -> Markup:
    """Draw a histogram with its median and the range of the middle 80 % of the faces."""
    left, right, bottom = 8, WIDTH - 8, _HISTOGRAM_HEIGHT - 28
    scale = (right - left) / (each.end - each.start)

    def x(value: float) -> float:
        return left + (value - each.start) * scale

    peak, width = max((*each.counts, 1)), (right - left) / max(1, len(each.counts))
    parts = []
    for index, count in enumerate(each.counts):
        height = (bottom - _TOP - 8) * count / peak
        start = each.start + index * (each.end - each.start) / len(each.counts)
        end = each.start + (index + 1) * (each.end - each.start) / len(each.counts)
        tip = _element("title", f"{number(start)} to {number(end)}: {count:,} faces")
        box = {"x": left + index * width + 0.5, "width": width - 1}
        if count:
            parts.append(
                _element("rect", tip, class_="bar", y=bottom - height, height=height, **box)
            )
    middle = x(each.median)
    anchor = "start" if middle < WIDTH / 2 else "end"
    label = middle + (5 if anchor == "start" else -5)
    shown = ticks(each.start, each.end)
    parts += [
        _element("line", class_="axis", x1=left, x2=right, y1=bottom, y2=bottom),
        _element("line", class_="range", x1=x(each.low), x2=x(each.high), y1=bottom, y2=bottom),
        _element("line", class_="median", x1=middle, x2=middle, y1=_TOP - 4, y2=bottom),
        _element(
            "text", f"median {number(each.median)}", class_="mark", x=label, y=_TOP + 4,
            text_anchor=anchor,
        ),
        *(
            _x_label(text, x(value), _HISTOGRAM_HEIGHT - 10)
            for value, text in zip(shown, _tick_labels(shown), strict=True)
        ),
    ]  # fmt: skip
    text = (
        f"Histogram of {each.label}: median {number(each.median)}, "
        f"80 % of the faces between {number(each.low)} and {number(each.high)}"
    )
    return _figure(parts, text, WIDTH, _HISTOGRAM_HEIGHT)


def _x_label(text: str, x: float, y: float) -> Markup:
    """Return a label centred at `x`, moved inside the chart at its borders."""
    half = 3.3 * len(text)
    x = min(max(x, half + 1), WIDTH - half - 1)
    return _element("text", text, class_="tick", x=x, y=y, text_anchor="middle")


def curve(each: Curve, labels: Sequence[str], axis: str) -> Markup:
    """Draw means with a band from the 10th to the 90th percentile; `labels` are of the points."""
    points = each.points
    low = min(min(point.low, point.mean) for point in points)
    high = max(max(point.high, point.mean) for point in points)
    pad = (high - low) * 0.06 or abs(high) * 0.05 or 1.0
    low, high = low - pad, high + pad
    bottom = _CURVE_HEIGHT - _BOTTOM
    steps = max(1, len(points) - 1)

    def x(index: int) -> float:
        inner = WIDTH - _LEFT - _RIGHT - 16
        return _LEFT + 8 + (inner * index / steps if len(points) > 1 else inner / 2)

    def y(value: float) -> float:
        return bottom - (value - low) / (high - low) * (bottom - _TOP)

    grid = ticks(low, high)
    parts = _grid(grid, y)
    upper = [f"{x(i):.1f},{y(point.high):.1f}" for i, point in enumerate(points)]
    lower = [f"{x(i):.1f},{y(point.low):.1f}" for i, point in enumerate(points)]
    means = " ".join(f"{x(i):.1f},{y(point.mean):.1f}" for i, point in enumerate(points))
    parts += [
        _element("polygon", class_="band", points=" ".join([*upper, *reversed(lower)])),
        _element("polyline", class_="line", points=means),
    ]
    every = math.ceil(len(points) / 6)
    for index, (point, label) in enumerate(zip(points, labels, strict=True)):
        tip = _element(
            "title",
            f"{axis} {label}: mean {number(point.mean)}, median {number(point.median)}, 80 % "
            f"between {number(point.low)} and {number(point.high)}, {point.faces:,} faces",
        )
        parts.append(_element("circle", tip, class_="dot", cx=x(index), cy=y(point.mean), r=3.5))
        if index % every == 0:
            parts.append(_x_label(label, x(index), bottom + 15))
    parts.append(
        _element(
            "text", axis, class_="axis-name", x=WIDTH - _RIGHT, y=_CURVE_HEIGHT - 4,
            text_anchor="end",
        )
    )  # fmt: skip
    first, last = points[0], points[-1]
    text = (
        f"Mean {each.label} by {axis}: {number(first.mean)} at {labels[0]}, "
        f"{number(last.mean)} at {labels[-1]}"
    )
    return _figure(parts, text, WIDTH, _CURVE_HEIGHT)


def _grid(values: Sequence[float], y: Callable[[float], float]) -> list[Markup]:
    """Return horizontal lines and their labels."""
    parts = []
    for value, text in zip(values, _tick_labels(values), strict=True):
        at = y(value)
        parts.append(_element("line", class_="grid", x1=_LEFT, x2=WIDTH - _RIGHT, y1=at, y2=at))
        parts.append(
            _element("text", text, class_="tick", x=_LEFT - 7, y=at + 3.5, text_anchor="end")
        )
    return parts


def share_bar(share: float) -> Markup:
    """Draw a bar whose length is a share of the width, 0 to 1."""
    bar = _element("rect", class_="bar", width=max(0.5, 100 * share), height=8, rx=1)
    return _element(
        "svg", bar, class_="share", viewBox="0 0 100 8", preserveAspectRatio="none",
        aria_hidden="true",
    )  # fmt: skip


def scatter(points: NDArray[np.float32], values: Sequence[float | None], label: str) -> Markup:
    """Draw points [n, 2] in [-1, 1] as circles, coloured by the rank of their values.

    A circle's `data-i` is its index. A point without a value has the class `c-none`.
    """
    parts = [
        _element("line", class_="grid", x1=0, x2=MAP_WIDTH, y1=MAP_HEIGHT / 2, y2=MAP_HEIGHT / 2),
        _element("line", class_="grid", x1=MAP_WIDTH / 2, x2=MAP_WIDTH / 2, y1=0, y2=MAP_HEIGHT),
    ]
    reach = np.maximum(np.abs(points).max(axis=0), 1e-6)
    scale = min((MAP_WIDTH / 2 - 12) / reach[0], (MAP_HEIGHT / 2 - 12) / reach[1])
    classes = _colour_classes(values)
    for index, (x, y) in enumerate(points):
        parts.append(
            _element(
                "circle", class_=f"point {classes[index]}", data_i=index, r=4,
                cx=float(MAP_WIDTH / 2 + x * scale), cy=float(MAP_HEIGHT / 2 - y * scale),
            )
        )  # fmt: skip
    return _element(
        "svg", Markup("").join(parts), class_="map", viewBox=f"0 0 {MAP_WIDTH} {MAP_HEIGHT}",
        role="application", tabindex=0, aria_label=label, id="map",
    )  # fmt: skip


def _colour_classes(values: Sequence[float | None]) -> Mapping[int, str]:
    present = [index for index, value in enumerate(values) if value is not None]
    ranked = sorted(present, key=lambda index: values[index] or 0.0)
    classes = dict.fromkeys(range(len(values)), "c-none")
    for rank, index in enumerate(ranked):
        classes[index] = f"c{rank * COLOURS // len(ranked)}"
    return classes
