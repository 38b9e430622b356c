"""Choice of the device and of its arithmetic."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from pipeline.choices import Precision
from pipeline.errors import ConfigError
from pipeline.inversion import ready_device


@pytest.fixture(autouse=True)
def restored_settings() -> Iterator[None]:
    """Restore PyTorch's settings after each test."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.conv.fp32_precision, matmul.fp32_precision, cudnn.deterministic
    yield
    cudnn.conv.fp32_precision, matmul.fp32_precision, cudnn.deterministic = before


@pytest.mark.parametrize(("precision", "mode"), [("float32", "ieee"), ("tf32", "tf32")])
def test_precision_sets_the_arithmetic_of_a_gpu(precision: Precision, mode: str) -> None:
    """PyTorch's default for convolutions is TF32, which differs from the reference."""
    torch.backends.cudnn.conv.fp32_precision = "tf32" if mode == "ieee" else "ieee"
    torch.backends.cudnn.deterministic = False
    ready_device("cpu", precision)
    assert torch.backends.cudnn.conv.fp32_precision == mode
    assert torch.backends.cuda.matmul.fp32_precision == mode
    assert torch.backends.cudnn.deterministic


def test_auto_uses_a_gpu_if_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [ready_device("auto"), ready_device("cuda"), ready_device("cpu")] == [
        "cuda",
        "cuda",
        "cpu",
    ]


def test_a_missing_gpu_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert ready_device("auto") == "cpu"
    with pytest.raises(ConfigError, match=r"PyTorch .* finds no GPU here; install its CUDA build"):
        ready_device("cuda")
