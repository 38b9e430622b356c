"""The calibration as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from _pytest.capture import CaptureFixture

from jobs.calibrate_stop import clock, main
from pipeline.inversion import StopRule
from pipeline.models import load_model
from pipeline.reports.stop_report import stop_flags

SAMPLES = str(Path(__file__).parents[2] / "pipeline" / "samples")


def test_it_chooses_on_one_set_and_reports_on_another(
    tiny_bundle: str, tmp_path: Path, capsys: CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    sets = ["--calibrate", f"{SAMPLES}/samples-0000.tar", "--report", f"{SAMPLES}/samples-0001.tar"]
    small = ["--limit", "4", "--most", "3", "--like-steps", "2", "--model", tiny_bundle]
    assert main([*sets, *small, "--output", str(tmp_path / "curve")]) == 0
    printed = capsys.readouterr()
    record = json.loads(printed.out.splitlines()[-1])
    rule = StopRule(record["gain"], record["residual"], record["least"], record["most"])
    assert rule.most == 3
    assert record["flags"] == stop_flags(rule)
    assert f"jobs/invert_dataset.py {stop_flags(rule)}\n" in printed.err
    assert 1 <= record["steps"] <= 3
    names = {path.name for path in (tmp_path / "curve").iterdir()}
    assert names == {"stop_curve.md", "stop_curve.csv", "stop_curve.png"}


def test_an_input_that_is_not_there_is_the_users_mistake(
    tmp_path: Path, capsys: CaptureFixture[str]
) -> None:
    nowhere = str(tmp_path / "nowhere")
    asked = ["--calibrate", nowhere, "--report", nowhere, "--output", str(tmp_path / "out")]
    assert main(asked) == 2
    assert "nowhere" in capsys.readouterr().err


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_clock_waits_for_the_gpu(tiny_bundle: str) -> None:
    model = load_model(tiny_bundle, "cuda")
    square = torch.randn(4096, 4096, device="cuda")
    torch.mm(square, square)  # what the first call sets up is no work
    begun, start, end = clock(model), torch.cuda.Event(True), torch.cuda.Event(True)
    start.record()
    for _ in range(50):
        torch.mm(square, square)
    end.record()
    seconds = clock(model) - begun
    assert seconds >= start.elapsed_time(end) / 1000
