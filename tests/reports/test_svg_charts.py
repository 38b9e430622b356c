"""Charts are well-formed, escaped, and labelled with round numbers."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import numpy as np
import pytest

from pipeline.reports.svg_charts import curve, histogram, number, scatter, ticks
from pipeline.reports.table_numbers import BINS, Curve, Distribution, Point

LABEL = "<b>\"&' L2"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((0.0123456, "0.0123"), (-1.5, "−1.50"), (1234567.8, "1,234,568"), (0.0, "0")),
        *((None, "–"), (math.inf, "–"), (math.nan, "–"), (-1e-9, "0.000000"), (99.96, "100.0")),
    ],
)
def test_numbers_have_three_significant_digits(value: float | None, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        *((0, 1, [0, 0.5, 1]), (-0.1, 0.29, [-0.1, 0, 0.1, 0.2]), (3, 3, [3])),
        *((1e6, 1.0001e6, [1e6, 1.00005e6, 1.0001e6]), (0, math.inf, [0])),
    ],
)
def test_ticks_are_round_and_inside(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def distribution(start: float, end: float) -> Distribution:
    middle = (start + end) / 2
    counts = tuple(range(BINS))
    return Distribution(
        "l2", LABEL, "", False, 496, 0, middle, start, middle, end, start, end, counts
    )


@pytest.mark.parametrize("end", [1e-7, 1.0, 1e9])
def test_charts_are_escaped_xml_within_their_frame(end: float) -> None:
    points = tuple(Point(step, 9, end / step, 0, end / step, end) for step in (1, 2, 3))
    charts = [
        histogram(distribution(0, end)),
        curve(Curve("l2", LABEL, False, points), ["1", "2", "3"], LABEL),
        curve(Curve("l2", LABEL, False, points[:1]), ["1"], "step"),
    ]
    for chart in charts:
        root = ElementTree.fromstring(chart)
        _, _, width, height = map(float, root.attrib["viewBox"].split())
        for name, size in (("x", width), ("cx", width), ("y", height), ("cy", height)):
            places = [float(each.get(name, 0)) for each in root.iter()]
            assert 0 <= min(places) <= max(places) <= size
        assert LABEL in root.attrib["aria-label"] or "step" in chart
        assert root.findall(".//title")


def test_bars_are_as_high_as_their_counts() -> None:
    root = ElementTree.fromstring(histogram(distribution(0, 1)))
    heights = [float(bar.attrib["height"]) for bar in root.findall("rect")]
    assert heights == pytest.approx(
        [heights[-1] * i / (BINS - 1) for i in range(1, BINS)], abs=0.01
    )


def test_points_are_coloured_by_rank() -> None:
    values = [*range(14), None]
    points = np.stack([np.linspace(-1, 1, 15), np.zeros(15)], 1).astype(np.float32)
    root = ElementTree.fromstring(scatter(points, values, LABEL))
    circles = root.findall("circle")
    assert [circle.attrib["class"].split()[1] for circle in circles] == [
        *(f"c{index // 2}" for index in range(14)),
        "c-none",
    ]
    assert [circle.attrib["data-i"] for circle in circles] == [str(index) for index in range(15)]
