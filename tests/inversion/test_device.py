"""Which device is used, and how it is to multiply."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from pipeline.choices import Precision
from pipeline.errors import ConfigError
from pipeline.inversion import ready_device


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """The process multiplies afterwards as it did before."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.conv.fp32_precision, matmul.fp32_precision, cudnn.deterministic
    yield
    cudnn.conv.fp32_precision, matmul.fp32_precision, cudnn.deterministic = before


@pytest.mark.parametrize(("precision", "mode"), [("float32", "ieee"), ("tf32", "tf32")])
def test_a_gpu_multiplies_as_it_is_told(precision: Precision, mode: str) -> None:
    """PyTorch itself leaves convolutions to TF32, which misses the reference's numbers."""
    torch.backends.cudnn.conv.fp32_precision = "tf32" if mode == "ieee" else "ieee"
    torch.backends.cudnn.deterministic = False
    ready_device("cpu", precision)
    assert torch.backends.cudnn.conv.fp32_precision == mode
    assert torch.backends.cuda.matmul.fp32_precision == mode
    assert torch.backends.cudnn.deterministic


def test_a_gpu_is_taken_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [ready_device("auto"), ready_device("cuda"), ready_device("cpu")] == [
        "cuda",
        "cuda",
        "cpu",
    ]


def test_a_gpu_that_is_asked_for_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert ready_device("auto") == "cpu"
    with pytest.raises(ConfigError, match=r"PyTorch .* finds no GPU here; install its CUDA build"):
        ready_device("cuda")
