"""Choice of the device and of its arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pipeline.choices import Precision
from pipeline.errors import ConfigError
from pipeline.inversion import arithmetic, cpu_has_bfloat16, ready_device


@pytest.fixture(autouse=True)
def restored_settings() -> Iterator[None]:
    """Restore PyTorch's settings after each test."""
    cudnn = torch.backends.cudnn
    deterministic = cudnn.deterministic
    yield
    ready_device("cpu", "float32")
    cudnn.deterministic = deterministic


@pytest.mark.parametrize(("precision", "mode"), [("float32", "ieee"), ("tf32", "tf32")])
def test_precision_sets_the_arithmetic_of_a_gpu(precision: Precision, mode: str) -> None:
    """PyTorch's default for convolutions is TF32, which differs from the reference."""
    torch.backends.cudnn.conv.fp32_precision = "tf32" if mode == "ieee" else "ieee"
    torch.backends.cudnn.deterministic = False
    ready_device("cpu", precision)
    assert torch.backends.cudnn.conv.fp32_precision == mode
    assert torch.backends.cuda.matmul.fp32_precision == mode
    assert torch.backends.cudnn.deterministic
    # PyTorch refuses to read the older flags where the new ones say something else.
    assert torch.backends.cudnn.allow_tf32 is (mode == "tf32")
    assert torch.backends.cuda.matmul.allow_tf32 is (mode == "tf32")
    with torch.backends.cudnn.flags(enabled=True):
        pass


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


def test_auto_is_bfloat16_on_a_gpu_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert arithmetic("auto", "cuda") == "bfloat16"
    assert arithmetic("auto", "cuda", gradients=True) == "float32"
    assert arithmetic("tf32", "cuda") == "tf32"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla V100")
    assert arithmetic("auto", "cuda") == "float32"
    with pytest.raises(ConfigError, match="Tesla V100 has no bfloat16; use --precision float32"):
        arithmetic("bfloat16", "cuda")


def test_a_cpu_takes_bfloat16_if_it_is_faster(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "with").write_text("processor : 0\nflags\t\t: fpu avx512f avx512_bf16 clzero\n")
    (tmp_path / "without").write_text("processor : 0\nflags\t\t: fpu avx2 avx512f\n")
    assert cpu_has_bfloat16(tmp_path / "with")
    assert not cpu_has_bfloat16(tmp_path / "without")
    assert not cpu_has_bfloat16(tmp_path / "absent")
    assert arithmetic("auto", "cpu") == "float32"
    with pytest.raises(ConfigError, match="--precision tf32 needs a GPU"):
        arithmetic("tf32", "cpu")
    monkeypatch.setattr("pipeline.inversion.device.cpu_has_bfloat16", lambda: True)
    assert arithmetic("bfloat16", "cpu") == "bfloat16"
    monkeypatch.setattr("pipeline.inversion.device.cpu_has_bfloat16", lambda: False)
    with pytest.raises(ConfigError, match="neither AVX512_BF16 nor AMX"):
        arithmetic("bfloat16", "cpu")
