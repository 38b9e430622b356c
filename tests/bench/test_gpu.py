"""The measurement of a GPU runs on a CPU too, where its numbers mean nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from pipeline.models.epilogue import blur
from tests.bench import gpu


def test_every_stage_runs_without_a_gpu(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "gpu.json"
    assert gpu.main(["--device", "cpu", "--tiny", "--output", str(output)]) == 0
    results = json.loads(output.read_text())
    assert [name for name in results if name != "seconds"] == [*gpu.STAGES]
    assert {row["precision"] for row in results["inverters"]} == {"bfloat16", "tf32", "float32"}
    assert all(row["images_per_second"] > 0 for row in results["inverters"])
    assert results["parts"]["kernels"]
    case = results["ratios"]["published, default flags, batch 1"]
    assert case.keys() == {"bfloat16", "tf32", "float32"}
    assert min(case.values()) > 0
    assert results["ratios"]["bfloat16_share_of_product"] > 0
    assert json.loads(capfd.readouterr().out.splitlines()[-1]) == results


def test_a_wrong_result_ends_the_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(gpu.BOUNDS, "bfloat16", 1e-6)
    arguments = ["--device", "cpu", "--tiny", "--stages", "correct,parts"]
    output = tmp_path / "gpu.json"
    assert gpu.main([*arguments, "--output", str(output)]) == 1
    assert "codes differ by" in json.loads(output.read_text())["correct"]["wrong"]
    with pytest.raises(ArithmeticError, match="not finite"):
        gpu.check_finite([torch.tensor([1.0, float("nan")])])


def test_four_phases_are_the_filtered_up_convolution() -> None:
    x = torch.randn(2, 5, 6, 7, dtype=torch.float64)
    weight = torch.randn(5, 3, 3, 3, dtype=torch.float64)
    expected = blur(F.conv_transpose2d(x, weight, stride=2))
    made = F.pixel_shuffle(F.conv2d(x, gpu.phases(weight), padding=1), 2)
    assert torch.allclose(made, expected, rtol=0, atol=1e-12)
