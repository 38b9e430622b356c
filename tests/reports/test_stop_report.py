"""Report of a stop rule's curve: Markdown, CSV, plot and flags."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import pytest
import torch
from PIL import Image

from jobs.invert_dataset import parse_arguments
from pipeline.config import JobConfig, load_config
from pipeline.inversion import StepMeasures, StopRule
from pipeline.reports.stop_calibration import Trace, curve
from pipeline.reports.stop_report import StopCurve, stop_csv, stop_flags, stop_markdown, stop_plot


@pytest.fixture
def stop_curve() -> StopCurve:
    """Return a curve of two faces that stop after two and three of four steps."""
    l2 = torch.tensor([[0.4, 0.31, 0.3, 0.3], [0.5, 0.4, 0.31, 0.3]])
    gains = torch.tensor([[0.5, 0.09, 0.01, 0.0], [0.4, 0.1, 0.09, 0.01]])
    traced = Trace(l2, l2, StepMeasures(gains, gains * 0 + 0.1))
    rule = StopRule(improvement=0.095, residual=0.2, max_steps=4)
    return StopCurve(
        traced, traced.with_rule(rule), curve(traced, rule, [0.001, 0.2]), like_steps=4
    )


def test_markdown_has_the_rule_and_fixed_steps(stop_curve: StopCurve) -> None:
    text = stop_markdown(stop_curve)
    assert "| **0.095** (chosen) | 2.50 | 0.31000 | +3.3% | +3.3% | +3.3% |" in text
    assert "| N=4 for all | 4.00 | 0.30000 | +0.0% | +0.0% | +0.0% |" in text
    assert "the bound of the residual is 0.2." in text
    assert f"--model MODEL {stop_flags(stop_curve.chosen.rule)} ...\n" in text


@pytest.mark.parametrize("gain", [0.00167, -1.23e-05, 0.0])
def test_flags_reproduce_the_rule(gain: float) -> None:
    rule = StopRule(improvement=gain, residual=0.14, max_steps=6)
    given = parse_arguments(["--input", "in", "--output", "out", *stop_flags(rule).split()])
    config = load_config(
        None, {k: v for k, v in vars(given).items() if k in JobConfig.model_fields}
    )
    assert config.steps == "auto"
    assert StopRule(config.stop_gain, config.stop_residual, 1, config.step_count) == rule


def test_csv_has_the_same_points(stop_curve: StopCurve) -> None:
    rows = list(csv.DictReader(io.StringIO(stop_csv(stop_curve))))
    assert len(rows) == 2 + 1 + 4
    assert [float(row["mean_steps"]) for row in rows[3:]] == [1, 2, 3, 4]
    assert float(rows[2]["gain"]) == 0.095
    assert float(rows[2]["relative_l2"]) == pytest.approx(0.31 / 0.3 - 1)


def test_plot_is_a_reproducible_png(stop_curve: StopCurve) -> None:
    pytest.importorskip("matplotlib")
    picture = stop_plot(stop_curve)
    assert Image.open(io.BytesIO(picture)).width > 500
    assert stop_plot(stop_curve) == picture
    assert stop_plot(replace(stop_curve, tolerance=0.2)) != picture  # its line and label
