"""The curve of a stop rule as people and programs read it."""

from __future__ import annotations

import csv
import io

import pytest
import torch
from PIL import Image

from jobs.invert_dataset import parse_arguments
from pipeline.config import JobConfig, load_config
from pipeline.inversion import StepMeasures, StopRule
from pipeline.reports.stop_calibration import Trace, curve
from pipeline.reports.stop_report import StopCurve, stop_csv, stop_flags, stop_markdown, stop_plot


@pytest.fixture
def drawn() -> StopCurve:
    """A curve of two faces that stop after two and three of four steps."""
    l2 = torch.tensor([[0.4, 0.31, 0.3, 0.3], [0.5, 0.4, 0.31, 0.3]])
    gains = torch.tensor([[0.5, 0.09, 0.01, 0.0], [0.4, 0.1, 0.09, 0.01]])
    traced = Trace(l2, l2, StepMeasures(gains, gains * 0 + 0.1))
    rule = StopRule(improvement=0.095, residual=0.2, max_steps=4)
    return StopCurve(traced, traced.tried(rule), curve(traced, rule, [0.001, 0.2]), like_steps=4)


def test_the_table_shows_the_rule_beside_fixed_steps(drawn: StopCurve) -> None:
    text = stop_markdown(drawn)
    assert "| **0.095** (chosen) | 2.50 | 0.31000 | +3.3% | +3.3% | +3.3% |" in text
    assert "| N=4 for all | 4.00 | 0.30000 | +0.0% | +0.0% | +0.0% |" in text
    assert "the residual's is 0.2." in text
    assert f"--model MODEL {stop_flags(drawn.chosen.rule)} ...\n" in text


@pytest.mark.parametrize("gain", [0.00167, -1.23e-05, 0.0])
def test_the_flags_give_the_rule_back(gain: float) -> None:
    rule = StopRule(improvement=gain, residual=0.14, max_steps=6)
    given = parse_arguments(["--input", "in", "--output", "out", *stop_flags(rule).split()])
    config = load_config(
        None, {k: v for k, v in vars(given).items() if k in JobConfig.model_fields}
    )
    assert config.steps == "auto"
    assert StopRule(config.stop_gain, config.stop_residual, 1, config.step_count) == rule


def test_a_program_reads_the_same_points(drawn: StopCurve) -> None:
    rows = list(csv.DictReader(io.StringIO(stop_csv(drawn))))
    assert len(rows) == 2 + 1 + 4
    assert [float(row["mean_steps"]) for row in rows[3:]] == [1, 2, 3, 4]
    assert float(rows[2]["gain"]) == 0.095
    assert float(rows[2]["relative_l2"]) == pytest.approx(0.31 / 0.3 - 1)


def test_the_plot_is_a_picture_and_the_same_twice(drawn: StopCurve) -> None:
    pytest.importorskip("matplotlib")
    picture = stop_plot(drawn)
    assert Image.open(io.BytesIO(picture)).width > 500
    assert stop_plot(drawn) == picture
